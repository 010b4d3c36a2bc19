"""Random q, k and v, the same in the benchmark and in its worker processes."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def attention_inputs(shape: tuple[int, int, int], context: int, batch: int) -> tuple[Array, Array, Array]:
    """float32 q [batch, Hq, D] of the last token, and k and v [context, Hkv, D], which all sequences share."""
    heads, kv_heads, dim = shape
    random = np.random.default_rng(0)
    q = random.standard_normal((batch, heads, dim), np.float32)
    k, v = (random.standard_normal((context, kv_heads, dim), np.float32) for _ in range(2))
    return q, k, v
