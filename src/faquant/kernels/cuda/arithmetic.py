"""Functions that several kernels share: rounding, 2^x, sums by halves, the Hadamard transform."""

import math

import triton
import triton.language as tl

from .. import quantizers

ROUNDED = {"enable_fp_fusion": False}
"""Options of every launch: a product and the sum after it are two roundings, as in the reference."""

SMALLEST_SCALE = tl.constexpr(quantizers.SMALLEST_SCALE)

ROUNDER = tl.constexpr(12582912.0)
"""1.5 · 2^23. Adding it rounds |x| < 2^22 to an integer, halves to even, which is then in the lowest bits."""
ROUNDER_BITS = tl.constexpr(0x4B400000)


def hadamard_factor(block: int) -> float:
    """The factor of a Hadamard transform in blocks of this size; 1 for 0, no transform."""
    return 1.0 / math.sqrt(block) if block else 1.0


@triton.jit
def rounded(x):
    """x to the nearest integer, as float32; |x| < 2^22."""
    return (x + ROUNDER) - ROUNDER


@triton.jit
def integer_of(x):
    """x to the nearest integer, as int32; |x| < 2^22. Without a conversion, which is slow on GPUs."""
    return (x + ROUNDER).to(tl.int32, bitcast=True) - ROUNDER_BITS


@triton.jit
def magnitude_bits(x):
    """The bits of |x| as int32. They have the order of the numbers, and unlike floats do not lose NaN in a maximum."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def scale_of(peak, STEPS: tl.constexpr):
    """quantizers.quantize_rows' scale for this greatest magnitude, float32; NaN for NaN."""
    return tl.div_rn(tl.where(peak < 1e-30, 1e-30, peak), STEPS)


@triton.jit
def exp2(x):
    """reference.exp2: 2^x for x ≤ 0, by its eleven roundings."""
    x = tl.maximum(x, -127.0)
    shifted = x + ROUNDER
    f = x - (shifted - ROUNDER)
    p = f * 0.001326472731307149
    p = (p + 0.009671512991189957) * f
    p = (p + 0.05550733581185341) * f
    p = (p + 0.24022242426872253) * f
    p = (p + 0.6931470036506653) * f
    p = p + 1.0
    power = ((shifted.to(tl.int32, bitcast=True) - ROUNDER_BITS + 127) << 23).to(tl.float32, bitcast=True)
    return p * power


@triton.jit
def sum_of_columns(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sum of x [ROWS, COLUMNS] over its rows by halves, as reference._tree_sum: float32 [COLUMNS].

    ROWS is a power of two up to 256. Each step adds two numbers, so its bits do not depend on the layout.
    """
    for level in tl.static_range(0, 8):
        if (ROWS >> level) > 1:
            x = tl.sum(tl.reshape(x, (2, ROWS >> (level + 1), COLUMNS)), axis=0)
    return tl.reshape(x, (COLUMNS,))


@triton.jit
def hadamard(x, ROWS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, FACTOR: tl.constexpr):
    """quantizers.hadamard of x [ROWS, SIZE] in blocks of BLOCK, a power of two up to 512; FACTOR is 1/√BLOCK."""
    for level in tl.static_range(0, 9):
        if (1 << level) < BLOCK:
            pairs = tl.reshape(x, (ROWS, SIZE // (2 << level), 2, 1 << level)).permute(0, 1, 3, 2)
            a, b = tl.split(pairs)
            x = tl.reshape(tl.join(a + b, a - b).permute(0, 1, 3, 2), (ROWS, SIZE))
    return x * FACTOR
