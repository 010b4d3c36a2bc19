"""The bfloat16 decode that the int8 one is compared with: close to float64, and nothing unseen is read."""

import math

import pytest
import torch

from faquant.kernels.cuda.bfloat16 import attend_bfloat16
from faquant.kernels.scheme import AttentionScheme
from oracles.cuda_cache import Batch

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize(("length", "window"), [(1, None), (300, None), (300, 130)])
def test_close_to_float64(length: int, window: int | None) -> None:
    batch = Batch.random(AttentionScheme(4, 1, 64), [(1, length - 1)])
    shape = batch.cache.k.shape
    k = torch.full(shape, math.nan, dtype=torch.bfloat16)
    v = torch.full((*shape[:3], 64, 128), 3e38, dtype=torch.bfloat16)
    keys, values = torch.randn(2, length, 64).bfloat16()
    oldest = 0 if window is None else max(0, length - window)
    for position in range(oldest, length):
        page = int(batch.spans.block_tables[0, position // 128])
        k[page, 0, 0, position % 128] = keys[position]
        v[page, 0, 0, :, position % 128] = values[position]
    q = torch.randn(1, 4, 64).bfloat16()
    out = attend_bfloat16(q, k, v, batch.tables, batch.spans, window)
    scores = q[0].double() @ keys[oldest:].double().T / 8
    expected = scores.softmax(-1) @ values[oldest:].double()
    assert (out[0] - expected).abs().max() < 0.01
