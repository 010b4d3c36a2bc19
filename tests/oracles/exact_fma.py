"""A fused multiply-add of float32 in NumPy, for Triton's interpreter, which rounds the product too."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from triton.runtime import interpreter

Floats = npt.NDArray[np.float32]


def exact_fma(x: Floats, y: Floats, z: Floats) -> Floats:
    """x · y + z of finite float32 arrays, rounded once.

    float64 holds the product exactly. The sum is rounded to odd there, which leaves the final rounding as it would be
    for the exact sum, because float64 has more than two bits more than float32 (Boldo and Melquiond, IEEE Transactions
    on Computers 57(4), 2008).
    """
    product, wide = x.astype(np.float64) * y.astype(np.float64), z.astype(np.float64)
    total = product + wide
    # Knuth's sum of two numbers: total + error is exact.
    part = total - product
    error = (product - (total - part)) + (wide - part)
    bits = total.view(np.int64)
    is_even = bits & 1 == 0
    # Toward the exact sum: one up in magnitude if the error has the sign of the total, else one down.
    step = np.where((error > 0) == (total > 0), 1, -1)
    odd = np.where(is_even & (error != 0), bits + step, bits)
    return odd.view(np.float64).astype(np.float32)


def use_in_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tl.fma round once, as the GPU's fma.rn does."""

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        return interpreter.TensorHandle(exact_fma(x.data, y.data, z.data), z.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", create_fma)
