"""The inputs of int8 linears: RMSNorm or silu(gate) · up, an input multiplier, the Hadamard transform and the rounding
of a row in one kernel.

A program takes a row, because RMSNorm and the scale need all of it. In decoding the other multiprocessors wait
meanwhile. So the long rows of few tokens are divided between programs, and a second kernel rounds them with the scale
of the row. For short rows its launch would not pay.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ..tables import ASYMMETRIC_INPUT_STEPS, INPUT_STEPS, WIDE_INPUT_STEPS, DynamicTable, StaticTable
from .arithmetic import ROUNDED, hadamard_factor
from .rounding_kernels import prepare_chunks, round_chunks, round_long_rows, round_rows

_KEPT_PER_THREAD = 44
"""Values of a row that a thread keeps in registers between the row's maximum and its rounding; more would spill."""

_LONG = 4096
"""Rows with more inputs than this are divided between programs if there are few tokens."""

_FEW_TOKENS = 64
"""With more tokens, whole rows keep all multiprocessors busy, and what two kernels exchange would cost more."""

_DIVIDED_CHUNK = 1024
"""Inputs of a program of a divided row, whole Hadamard blocks."""


@dataclass(frozen=True)
class InputRounding:
    """How the inputs of a linear become integers of 8 or 16 bits: a scale per token, or a static scale and zero point.
    On the device.

    Attributes:
        hadamard_block: size of the Hadamard blocks, a power of two up to 512; 0: none.
        steps: a token's scale is its greatest input divided by this, 127 or 127.5, or 32,639 for 16 bits; or its range
            divided by 255, with a zero point.
        multiplier: float32 [k], by which inputs are multiplied before all else, or None.
        scale, offset: float32 [1], static; None: a scale per token.
    """

    hadamard_block: int = 0
    steps: float = INPUT_STEPS
    multiplier: Tensor | None = None
    scale: Tensor | None = None
    offset: Tensor | None = None

    @property
    def rows_of_bytes(self) -> int:
        """Rows of bytes that a row of inputs becomes."""
        return 2 if self.steps == WIDE_INPUT_STEPS else 1

    @property
    def has_zeros(self) -> bool:
        """Whether each token has a zero point."""
        return self.scale is None and self.steps == ASYMMETRIC_INPUT_STEPS

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
    """int8 [tokens, k], float32 scales [tokens], None if the scale is static, and int32 zero points [tokens] or None:
    x ≈ (values − zero) · scale. Inputs of 16 bits are int8 [2 · tokens, k], for each token a row of high and a row of
    low bytes, which are 256 · high + low."""

    values: Tensor
    scale: Tensor | None
    zero: Tensor | None = None

    @property
    def is_wide(self) -> bool:
        """Whether the inputs have 16 bits."""
        return self.scale is not None and len(self.values) > len(self.scale)

    @classmethod
    def empty(cls, tokens: int, inputs: int, rounding: InputRounding, device: torch.device) -> "RoundedInputs":
        """Inputs with garbage in them."""
        values = torch.empty(tokens * rounding.rows_of_bytes, inputs, dtype=torch.int8, device=device)
        scale = torch.empty(tokens, device=device) if rounding.scale is None else None
        zero = torch.empty(tokens, dtype=torch.int32, device=device) if rounding.has_zeros else None
        return cls(values, scale, zero)


def round_inputs(
    x: Tensor, rounding: InputRounding, norm: DeviceNorm | None = None, out: RoundedInputs | None = None
) -> RoundedInputs:
    """Round x, contiguous float32 [tokens, k], after RMSNorm if there is a norm. k is a multiple of 16.

    Raises:
        ValueError: k is no multiple of 16, or of the Hadamard block.
    """
    return _launch(x, x.shape[1], False, rounding, norm, out)


def round_gated(gate_up: Tensor, rounding: InputRounding) -> RoundedInputs:
    """Round silu(gate) · up of gate_up, contiguous float32 [tokens, 2 · k], gate first. k is a multiple of 16.

    Raises:
        ValueError: k is no multiple of 16, or of the Hadamard block.
    """
    return _launch(gate_up, gate_up.shape[1] // 2, True, rounding, None, None)


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
    if not tokens:
        return out
    if norm is None and size > _LONG and (tokens <= _FEW_TOKENS or rounding.scale is not None):
        _launch_divided(x, size, gated, rounding, out)
        return out
    chunk, warps = chunks_of(size, block)
    fits = triton.cdiv(size, chunk) * chunk <= warps * 32 * _KEPT_PER_THREAD
    kernel = round_rows if fits else round_long_rows
    kernel[(tokens,)](
        x,
        out.values,
        out.scale,
        out.zero,
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
        FACTOR=hadamard_factor(block),
        STEPS=rounding.steps,
        num_warps=warps,
        **ROUNDED,
    )
    return out


def _launch_divided(x: Tensor, size: int, gated: bool, rounding: InputRounding, out: RoundedInputs) -> None:
    tokens, chunks = len(x), triton.cdiv(size, _DIVIDED_CHUNK)
    prepared = peaks = None
    if out.scale is not None:
        prepared = torch.empty(tokens, size, device=x.device)
        peaks = torch.empty(tokens, chunks, 2, dtype=torch.int32, device=x.device)
    prepare_chunks[(tokens, chunks)](
        x,
        out.values,
        prepared,
        peaks,
        rounding.multiplier,
        rounding.scale,
        rounding.offset,
        SIZE=size,
        CHUNK=_DIVIDED_CHUNK,
        GATED=gated,
        BLOCK=rounding.hadamard_block,
        FACTOR=hadamard_factor(rounding.hadamard_block),
        STEPS=rounding.steps,
        num_warps=4,
        **ROUNDED,
    )
    if out.scale is not None:
        round_chunks[(tokens, chunks)](
            prepared,
            peaks,
            out.values,
            out.scale,
            out.zero,
            SIZE=size,
            CHUNK=_DIVIDED_CHUNK,
            WIDTH=triton.next_power_of_2(chunks),
            STEPS=rounding.steps,
            num_warps=4,
            **ROUNDED,
        )


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
