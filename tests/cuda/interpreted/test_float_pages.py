"""Float caches on the GPU attend as the CPU's, within rounding."""

import numpy as np
import pytest
import torch

from faquant.kernels.backend import make_backend
from faquant.kernels.pages import Spans

pytestmark = pytest.mark.cuda

HEADS, KV_HEADS, DIM = 4, 2, 32


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
@pytest.mark.parametrize("page_size", [128, 256])
@pytest.mark.parametrize("window", [None, 40])
def test_appended_tokens_are_attended_to(dtype: str, tolerance: float, page_size: int, window: int | None) -> None:
    """A prompt, a copied page, and then single tokens: both ways to attend."""
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 260, KV_HEADS, DIM, generator=generator)
    q = torch.randn(260, HEADS, DIM, generator=generator)
    found = []
    for name in ("cpu", "cuda"):
        pages = make_backend(name).float_pages(HEADS, KV_HEADS, DIM, 5, page_size, dtype)
        table = np.array([3, 1, 0])[: -(-260 // page_size)]
        positions = np.arange(260)
        slots = table[positions // page_size] * page_size + positions % page_size
        pages.append(k[:258], v[:258], slots[:258], positions[:258])
        prompt = pages.attend(q[:258], Spans.of([(258, 0, table)]), window)
        pages.copy_page(int(table[0]), 4)
        table = np.array([4, *table[1:]])
        pages.append(k[258:], v[258:], slots[258:], positions[258:])
        answer = pages.attend(q[258:], Spans.of([(2, 258, table)]), window)
        found.append((prompt, answer, *(torch.as_tensor(x) for x in pages.read(table, 260))))
    for theirs, ours in zip(*found, strict=True):
        assert (ours - theirs).abs().max() <= tolerance
