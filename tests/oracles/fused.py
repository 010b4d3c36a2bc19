"""Exact fused multiply-add in float32, in NumPy."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """a · b + c, rounded once.

    The product is exact in float64. The sum is rounded to odd there (Boldo and Melquiond, "Emulation of FMA and
    correctly rounded sums", 2008), which the second rounding treats like the exact sum.
    """
    with np.errstate(all="ignore"):
        product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
        total = product + addend
        part = total - product
        rest = (product - (total - part)) + (addend - part)
        neighbor = np.nextafter(total, np.copysign(np.inf, rest))
        is_even = (total.view(np.int64) & 1) == 0
        inexact = np.isfinite(total) & (rest != 0)
        return np.where(inexact & is_even, neighbor, total).astype(np.float32)


def linear(x: Floats, weight: Floats, bias: Floats | None) -> Floats:
    """x [rows, inputs] · weight [outputs, inputs]ᵀ + bias, in the order of csrc/isa/linears.h."""
    sums = np.zeros((len(x), len(weight)), np.float32)
    for k in range(x.shape[1]):
        column = np.broadcast_to(weight[None, :, k], sums.shape)
        sums = fma(np.broadcast_to(x[:, k, None], sums.shape), column, sums)
    return sums if bias is None else sums + bias
