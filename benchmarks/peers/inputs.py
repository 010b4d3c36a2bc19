"""Random q, k and v that the benchmark and its workers make alike, each in its own process."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def attention_inputs(shape: tuple[int, int, int], context: int, batch: int) -> tuple[Array, Array, Array]:
    """Float32 q [batch, Hq, D], the last token's, and k and v [context, Hkv, D], the same for every sequence."""
    heads, kv_heads, dim = shape
    random = np.random.default_rng(0)
    q = random.standard_normal((batch, heads, dim), np.float32)
    k, v = (random.standard_normal((context, kv_heads, dim), np.float32) for _ in range(2))
    return q, k, v
