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
from .arithmetic import ROUNDED, ROUNDER, ROUNDER_BITS, hadamard, integer_of, rounded, sum_of_columns

_LANES = 16
"""Lanes of RMSNorm's sum of squares (csrc/generic/elementwise_rows-inl.h)."""

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
        round_rows[(tokens,)](
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
            KEPT=triton.cdiv(size, chunk) * chunk <= warps * 32 * _KEPT_PER_THREAD,
            UNROLLED=math.gcd(size // _LANES, 32),
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
    KEPT: tl.constexpr,
    UNROLLED: tl.constexpr,
):
    """One row of SIZE inputs in chunks of CHUNK. Grid (tokens,).

    KEPT: whether the row stays in registers from its maximum to its rounding; otherwise it is computed twice.
    UNROLLED: loads of 16 inputs that RMSNorm has in flight.
    """
    CHUNKS: tl.constexpr = (SIZE + CHUNK - 1) // CHUNK
    MASKED: tl.constexpr = SIZE % CHUNK != 0
    row = tl.program_id(0).to(tl.int64)
    x += row * (2 * SIZE if GATED else SIZE)
    values += row * SIZE
    rms = 1.0
    if norm_weight is not None:
        rms = _rms_factor(x, eps, SIZE, UNROLLED)
    if input_scale is not None:
        scale = tl.load(input_scale)
        offset = tl.load(input_offset)
        for i in range(CHUNKS):
            at = i * CHUNK + tl.arange(0, CHUNK)
            y = _inputs(x, at, rms, norm_weight, norm_bias, multiplier, SIZE, MASKED, GATED, CHUNK, 0, 1.0)
            steps = tl.minimum(tl.maximum(tl.div_rn(y, scale), -4e6), 4e6)
            _store(values, at, tl.minimum(tl.maximum(rounded(steps) + offset, -128.0), 127.0), SIZE, MASKED)
    else:
        peaks = tl.zeros((CHUNK,), tl.int32)
        kept = ()
        if KEPT:
            for i in tl.static_range(CHUNKS):
                y = _inputs(
                    x,
                    i * CHUNK + tl.arange(0, CHUNK),
                    rms,
                    norm_weight,
                    norm_bias,
                    multiplier,
                    SIZE,
                    MASKED and i == CHUNKS - 1,
                    GATED,
                    CHUNK,
                    BLOCK,
                    FACTOR,
                )
                peaks = tl.maximum(peaks, _magnitude_bits(y))
                kept += (y,)  # type: ignore[assignment]
        else:
            for i in range(CHUNKS):
                at = i * CHUNK + tl.arange(0, CHUNK)
                y = _inputs(x, at, rms, norm_weight, norm_bias, multiplier, SIZE, MASKED, GATED, CHUNK, BLOCK, FACTOR)
                peaks = tl.maximum(peaks, _magnitude_bits(y))
        peak = tl.max(peaks, axis=0).to(tl.float32, bitcast=True)
        scale = tl.div_rn(tl.where(peak < 1e-30, 1e-30, peak), STEPS)
        tl.store(scales + row, scale)
        if KEPT:
            for i in tl.static_range(CHUNKS):
                steps = tl.minimum(tl.maximum(tl.div_rn(kept[i], scale), -128.0), 127.0)
                _store(values, i * CHUNK + tl.arange(0, CHUNK), steps, SIZE, MASKED and i == CHUNKS - 1)
        else:
            for i in range(CHUNKS):
                at = i * CHUNK + tl.arange(0, CHUNK)
                y = _inputs(x, at, rms, norm_weight, norm_bias, multiplier, SIZE, MASKED, GATED, CHUNK, BLOCK, FACTOR)
                steps = tl.minimum(tl.maximum(tl.div_rn(y, scale), -128.0), 127.0)
                _store(values, at, steps, SIZE, MASKED)


@triton.jit
def _rms_factor(x, eps, SIZE: tl.constexpr, UNROLLED: tl.constexpr):
    """1 / √(mean of squares + eps) of a row, summed in 16 lanes one after another, and those by halves."""
    lanes = tl.arange(0, 16)[:, None]
    sums = tl.zeros((16, 1), tl.float32)
    for i in range(0, SIZE, 16 * UNROLLED):
        for j in tl.static_range(UNROLLED):
            v = tl.load(x + i + j * 16 + lanes)
            sums += v * v
    mean = tl.div_rn(tl.sum(sum_of_columns(sums, 16, 1), axis=0), SIZE * 1.0)
    return tl.div_rn(1.0, tl.sqrt_rn(mean + eps))


@triton.jit
def _inputs(
    x,
    at,
    rms,
    norm_weight,
    norm_bias,
    multiplier,
    SIZE: tl.constexpr,
    MASKED: tl.constexpr,
    GATED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """The inputs at these places of a row before their rounding; 0 beyond its end."""
    y = _load(x, at, SIZE, MASKED)
    if GATED:
        y = silu(y) * _load(x + SIZE, at, SIZE, MASKED)
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
def silu(x):
    """x / (1 + e^-x) with the roundings of silu_times in csrc: e^y = 2^n · e^r, r in two parts of ln 2."""
    y = tl.maximum(tl.minimum(-x, 88.0), -87.0)
    shifted = y * 1.44269504 + ROUNDER
    n = shifted - ROUNDER
    r = (y - n * 0.693359375) - n * -2.12194440e-4
    p = r * (1.0 / 5040) + (1.0 / 720)
    p = p * r + (1.0 / 120)
    p = p * r + (1.0 / 24)
    p = p * r + (1.0 / 6)
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    e = p * ((shifted.to(tl.int32, bitcast=True) - ROUNDER_BITS + 127) << 23).to(tl.float32, bitcast=True)
    return tl.div_rn(x, 1.0 + tl.where(-x > 88.0, float("inf"), e))


@triton.jit
def _magnitude_bits(x):
    """The bits of |x|, which have the order of the numbers and do not lose a NaN."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _load(pointer, at, SIZE: tl.constexpr, MASKED: tl.constexpr):
    return tl.load(pointer + at, mask=at < SIZE if MASKED else None, other=0.0 if MASKED else None)


@triton.jit
def _store(pointer, at, steps, SIZE: tl.constexpr, MASKED: tl.constexpr):
    """Store steps, rounded; they are within int8."""
    tl.store(pointer + at, integer_of(steps).to(tl.int8), mask=at < SIZE if MASKED else None)
