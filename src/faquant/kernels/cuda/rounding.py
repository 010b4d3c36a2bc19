"""The inputs of int8 linears: RMSNorm or silu(gate) · up, an input multiplier, the Hadamard transform and the rounding
of a row in one kernel.

A program takes a whole row. Several programs could share a row only if a second kernel followed, because the scale
needs the row's maximum; that launch would cost more than it saves, as one multiprocessor reads the longest row in about
2 µs.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tables import INPUT_STEPS, DynamicTable, StaticTable
from .arithmetic import ROUNDED, hadamard, integer_of, rounded
from .elementwise import rms_factor, silu

_KEPT_PER_THREAD = 44
"""Values of a row that a thread keeps in registers between the row's maximum and its rounding; more would spill."""


@dataclass(frozen=True)
class InputRounding:
    """How the inputs of a linear become int8: a scale per token, or a static scale and zero point. On the device.

    Attributes:
        hadamard_block: size of the Hadamard blocks, a power of two up to 512; 0: none.
        steps: a token's scale is its greatest input divided by this, 127 or 127.5.
        multiplier: float32 [k], by which inputs are multiplied before all else, or None.
        scale, offset: float32 [1], static; None: a scale per token.
    """

    hadamard_block: int = 0
    steps: float = INPUT_STEPS
    multiplier: Tensor | None = None
    scale: Tensor | None = None
    offset: Tensor | None = None

    @classmethod
    def of(cls, table: DynamicTable | StaticTable, device: torch.device) -> "InputRounding":
        """The rounding of this linear's inputs."""
        multiplier = None if table.input_multiplier is None else torch.tensor(table.input_multiplier, device=device)
        if isinstance(table, DynamicTable):
            return cls(table.hadamard_block, table.input_steps, multiplier)
        scale = torch.tensor(table.input_scale, device=device)
        return cls(multiplier=multiplier, scale=scale, offset=torch.tensor(table.input_offset, device=device))


@dataclass(frozen=True)
class DeviceNorm:
    """RMSNorm: float32 weight [k] and bias [k] or None, on the device."""

    weight: Tensor
    eps: float
    bias: Tensor | None = None


@dataclass(frozen=True)
class RoundedInputs:
    """int8 [tokens, k], and float32 scales [tokens], or None if the scale is static."""

    values: Tensor
    scale: Tensor | None

    @classmethod
    def empty(cls, tokens: int, inputs: int, rounding: InputRounding, device: torch.device) -> "RoundedInputs":
        """Inputs with garbage in them."""
        values = torch.empty(tokens, inputs, dtype=torch.int8, device=device)
        return cls(values, torch.empty(tokens, device=device) if rounding.scale is None else None)


def round_inputs(
    x: Tensor, rounding: InputRounding, norm: DeviceNorm | None = None, out: RoundedInputs | None = None
) -> RoundedInputs:
    """Round x, contiguous float32 [tokens, k], after RMSNorm if there is a norm. k is a multiple of 16.

    Raises:
        ValueError: k is no multiple of 16, or of the Hadamard block.
    """
    return _launch(x, x.shape[1], False, rounding, norm, out)


def round_gated(gate_up: Tensor, rounding: InputRounding, out: RoundedInputs | None = None) -> RoundedInputs:
    """Round silu(gate) · up of gate_up, contiguous float32 [tokens, 2 · k], gate first. k is a multiple of 16.

    Raises:
        ValueError: k is no multiple of 16, or of the Hadamard block.
    """
    return _launch(gate_up, gate_up.shape[1] // 2, True, rounding, None, out)


def _launch(
    x: Tensor,
    size: int,
    gated: bool,
    rounding: InputRounding,
    norm: DeviceNorm | None,
    out: RoundedInputs | None,
) -> RoundedInputs:
    block = rounding.hadamard_block
    if size % 16 or (block and size % block):
        raise ValueError(f"{size} inputs are not a multiple of {max(16, block)}")
    tokens = x.shape[0]
    if out is None:
        out = RoundedInputs.empty(tokens, size, rounding, x.device)
    chunk, warps = chunks_of(size, block)
    if tokens:
        fits = triton.cdiv(size, chunk) * chunk <= warps * 32 * _KEPT_PER_THREAD
        kernel = round_rows if fits else round_long_rows
        kernel[(tokens,)](
            x,
            out.values,
            out.scale,
            None if norm is None else norm.weight,
            None if norm is None else norm.bias,
            0.0 if norm is None else norm.eps,
            rounding.multiplier,
            rounding.scale,
            rounding.offset,
            SIZE=size,
            CHUNK=chunk,
            GATED=gated,
            BLOCK=block,
            FACTOR=1.0 / math.sqrt(block) if block else 1.0,
            STEPS=rounding.steps,
            num_warps=warps,
            **ROUNDED,
        )
    return out


def chunks_of(size: int, block: int) -> tuple[int, int]:
    """The chunk of a row that is worked on at a time, a power of two and of whole Hadamard blocks, and the warps of a
    program. The largest chunk that leaves at most an eighth of the last one empty, if there is one.
    """
    warps = 4 if size <= 2048 else 8 if size <= 8192 else 16
    # Four values per thread are one load of 16 bytes.
    least = max(block, 4 * 32 * warps)
    chunk = max(least, 4096)
    while chunk > least and 8 * triton.cdiv(size, chunk) * chunk > 9 * size:
        chunk //= 2
    return chunk, warps


@triton.jit
def round_rows(
    x,
    values,
    scales,
    norm_weight,
    norm_bias,
    eps,
    multiplier,
    input_scale,
    input_offset,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
    FACTOR: tl.constexpr,
    STEPS: tl.constexpr,
):
    """One row of SIZE inputs in chunks of CHUNK, all in registers. Grid (tokens,)."""
    CHUNKS: tl.constexpr = (SIZE + CHUNK - 1) // CHUNK
    MASKED: tl.constexpr = SIZE % CHUNK != 0
    columns = tl.arange(0, CHUNK)
    row = tl.program_id(0).to(tl.int64)
    x += row * (2 * SIZE if GATED else SIZE)
    values += row * SIZE
    # All loads of a row are under way before the first number is needed, and RMSNorm's sum finds the row in L1.
    first, ups, inputs = tl.tuple([]), tl.tuple([]), tl.tuple([])
    for i in tl.static_range(CHUNKS):
        first += (_load(x, i * CHUNK + columns, SIZE, MASKED and i == CHUNKS - 1),)
        if GATED:
            ups += (_load(x + SIZE, i * CHUNK + columns, SIZE, MASKED and i == CHUNKS - 1),)
    rms = 1.0
    if norm_weight is not None:
        rms = rms_factor(x + tl.arange(0, 1), eps, 1, SIZE)
    for i in tl.static_range(CHUNKS):
        y = first[i]
        if GATED:
            y = silu(y) * ups[i]
        at = i * CHUNK + columns
        inputs += (
            _transformed(
                y, at, rms, norm_weight, norm_bias, multiplier, SIZE, MASKED and i == CHUNKS - 1, CHUNK, BLOCK, FACTOR
            ),
        )
    if input_scale is not None:
        scale = tl.load(input_scale)
        offset = tl.load(input_offset)
    else:
        peaks = _magnitude_bits(inputs[0])
        for i in tl.static_range(1, CHUNKS):
            peaks = tl.maximum(peaks, _magnitude_bits(inputs[i]))
        scale = _scale_of(peaks, STEPS)
        offset = None
        tl.store(scales + row, scale)
    for i in tl.static_range(CHUNKS):
        _store(values, i * CHUNK + columns, _steps(inputs[i], scale, offset), SIZE, MASKED and i == CHUNKS - 1)


@triton.jit
def round_long_rows(
    x,
    values,
    scales,
    norm_weight,
    norm_bias,
    eps,
    multiplier,
    input_scale,
    input_offset,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
    FACTOR: tl.constexpr,
    STEPS: tl.constexpr,
):
    """As round_rows, for a row that does not fit into registers: its inputs are computed twice, first for their
    maximum.
    """
    CHUNKS: tl.constexpr = (SIZE + CHUNK - 1) // CHUNK
    MASKED: tl.constexpr = SIZE % CHUNK != 0
    columns = tl.arange(0, CHUNK)
    row = tl.program_id(0).to(tl.int64)
    x += row * (2 * SIZE if GATED else SIZE)
    values += row * SIZE
    rms = 1.0
    if norm_weight is not None:
        rms = rms_factor(x + tl.arange(0, 1), eps, 1, SIZE)
    if input_scale is not None:
        scale = tl.load(input_scale)
        offset = tl.load(input_offset)
    else:
        peaks = tl.zeros((CHUNK,), tl.int32)
        for i in range(CHUNKS):
            at = i * CHUNK + columns
            y = _first(x, at, SIZE, MASKED, GATED)
            y = _transformed(y, at, rms, norm_weight, norm_bias, multiplier, SIZE, MASKED, CHUNK, BLOCK, FACTOR)
            peaks = tl.maximum(peaks, _magnitude_bits(y))
        scale = _scale_of(peaks, STEPS)
        offset = None
        tl.store(scales + row, scale)
    for i in range(CHUNKS):
        at = i * CHUNK + columns
        y = _first(x, at, SIZE, MASKED, GATED)
        y = _transformed(y, at, rms, norm_weight, norm_bias, multiplier, SIZE, MASKED, CHUNK, BLOCK, FACTOR)
        _store(values, at, _steps(y, scale, offset), SIZE, MASKED)


@triton.jit
def _first(x, at, SIZE: tl.constexpr, MASKED: tl.constexpr, GATED: tl.constexpr):
    """x or silu(gate) · up at these places of a row; 0 beyond its end."""
    y = _load(x, at, SIZE, MASKED)
    if GATED:
        y = silu(y) * _load(x + SIZE, at, SIZE, MASKED)
    return y


@triton.jit
def _transformed(
    y,
    at,
    rms,
    norm_weight,
    norm_bias,
    multiplier,
    SIZE: tl.constexpr,
    MASKED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """The inputs at these places of a row, before their rounding."""
    if norm_weight is not None:
        y = _load(norm_weight, at, SIZE, MASKED) * (y * rms)
        if norm_bias is not None:
            y += _load(norm_bias, at, SIZE, MASKED)
    if multiplier is not None:
        y *= _load(multiplier, at, SIZE, MASKED)
    if BLOCK > 1:
        y = tl.reshape(hadamard(tl.reshape(y, (1, CHUNK)), 1, CHUNK, BLOCK, FACTOR), (CHUNK,))
    return y


@triton.jit
def _magnitude_bits(x):
    """The bits of |x|, which have the order of the numbers and do not lose a NaN."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _scale_of(peaks, STEPS: tl.constexpr):
    """The scale of a row with these magnitudes."""
    peak = tl.max(peaks, axis=0).to(tl.float32, bitcast=True)
    return tl.div_rn(tl.where(peak < 1e-30, 1e-30, peak), STEPS)


@triton.jit
def _steps(y, scale, offset):
    """y in steps of its scale, within int8; a static offset is added to rounded steps, as in MindIE."""
    steps = tl.div_rn(y, scale)
    if offset is not None:
        # Beyond 2^22 `rounded` is inexact, but such steps are clamped anyway.
        steps = rounded(steps) + offset
    return tl.minimum(tl.maximum(steps, -128.0), 127.0)


@triton.jit
def _load(pointer, at, SIZE: tl.constexpr, MASKED: tl.constexpr):
    return tl.load(pointer + at, mask=at < SIZE if MASKED else None, other=0.0 if MASKED else None)


@triton.jit
def _store(pointer, at, steps, SIZE: tl.constexpr, MASKED: tl.constexpr):
    tl.store(pointer + at, integer_of(steps).to(tl.int8), mask=at < SIZE if MASKED else None)
