"""Rows of q, k and v on their way to int8, as csrc/generic/quantize_rows-inl.h: RoPE, K's map, scales, rounding.

A program works on ROWS tokens of one head: float32 [ROWS, WIDTH], where WIDTH is the next power of two of head_dim.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import SMALLEST_SCALE, hadamard, integer_of, magnitude_bits, rounded
from .elementwise import rms_factor


@dataclass(frozen=True)
class TokenBlocks:
    """How a batch is divided among programs. The bits do not depend on it."""

    rows: int
    warps: int
    count: int

    @classmethod
    def of(cls, tokens: int, dim: int) -> "TokenBlocks":
        """One token for each program while there are few tokens, so that there are many programs. Otherwise as many
        as one warp holds with 16 channels a thread: rows in one warp do not wait for other warps."""
        rows = max(1, min(8, 512 // width_of(dim))) if tokens >= 64 else 1
        return cls(rows, max(1, width_of(dim) // 512), triton.cdiv(tokens, rows))


def heads_of(x: Tensor) -> Tensor:
    """x [tokens, heads, D] so that the heads of a token follow each other, with any distance between tokens."""
    dim = x.shape[2]
    return x if x.stride(2) == 1 and (x.stride(1) == dim or x.shape[1] == 1) else x.contiguous()


def width_of(dim: int) -> int:
    """Columns of the tile that holds rows of head_dim."""
    return int(triton.next_power_of_2(dim))


@triton.jit
def rotated_by_position(x, tokens, columns, cos, sin, norm, eps, ROWS: tl.constexpr, DIM: tl.constexpr):
    """Rows of q or k before RoPE at the pointers x [ROWS]: normed if `norm` [DIM] is there, then rotated by cos and sin
    [all tokens, DIM]."""
    inside = columns < DIM
    lower = columns < DIM // 2
    partners = tl.where(lower, columns + DIM // 2, columns - DIM // 2)
    factor = rms_factor(x, eps, ROWS, DIM)[:, None] if norm is not None else 1.0
    value = tl.load(x[:, None] + columns, mask=inside, other=0.0)
    partner = tl.load(x[:, None] + partners, mask=inside, other=0.0)
    if norm is not None:
        value = tl.load(norm + columns, mask=inside, other=0.0) * (value * factor)
        partner = tl.load(norm + partners, mask=inside, other=0.0) * (partner * factor)
    at = tokens.to(tl.int64)[:, None] * DIM + columns
    value = value * tl.load(cos + at, mask=inside, other=0.0)
    partner = partner * tl.load(sin + at, mask=inside, other=0.0)
    return tl.where(lower, value - partner, value + partner)


@triton.jit
def rotated(
    x,
    columns,
    sign,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
):
    """quantizers.hadamard of the rows x in blocks of BLOCK, after `sign` [DIM]; x itself if BLOCK is 0."""
    if BLOCK > 0:
        if sign is not None:
            x = x * tl.load(sign + columns, mask=columns < DIM, other=0.0)
        x = hadamard(x, ROWS, WIDTH, BLOCK, UNIT)
    return x


@triton.jit
def absolute_peak(x):
    """The greatest absolute value of each row; NaN if there is NaN in it."""
    return tl.max(magnitude_bits(x), axis=1).to(tl.float32, bitcast=True)


@triton.jit
def half_step_of(peak):
    """The scale float16 of rows with this peak, rounded up; NaN if there is NaN in the row."""
    exact = tl.div_rn(peak, tl.full(peak.shape, 127.0, tl.float32))
    exact = tl.maximum(exact, SMALLEST_SCALE, propagate_nan=tl.PropagateNan.ALL)
    exact = tl.minimum(exact, 65504.0, propagate_nan=tl.PropagateNan.ALL)
    step = exact.to(tl.float16)
    above = (step.to(tl.int16, bitcast=True) + 1).to(tl.float16, bitcast=True)
    return tl.where(step.to(tl.float32) < exact, above, step)


@triton.jit
def bytes_of(steps, LEAST: tl.constexpr):
    """Steps to the nearest integer in [LEAST, 127], halves to even, as int8."""
    return integer_of(tl.maximum(tl.minimum(steps, 127.0), LEAST)).to(tl.int8)


@triton.jit
def round_to_grid(steps):
    """As bytes_of from -128, as float32."""
    return rounded(tl.maximum(tl.minimum(steps, 127.0), -128.0))


@triton.jit
def count_beyond(steps, counted, counter):
    """Add the number of counted steps beyond the range of a static scale to the int64 at `counter`."""
    beyond = tl.sum((((steps < -128.5) | (steps > 127.5)) & counted).to(tl.int32))
    if beyond > 0:
        tl.atomic_add(counter, beyond.to(tl.int64), sem="relaxed")
