"""Pages in memory of the caller's, as vLLM's are: they may lie apart, and other things between them."""

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from faquant.kernels.backend import Pages, make_backend
from faquant.kernels.cuda.float_pages import FloatPages
from faquant.kernels.cuda.pages import Int8Pages
from faquant.kernels.pages import Spans
from oracles.schemes import make_scheme

pytestmark = pytest.mark.cuda

HEADS, KV_HEADS, DIM = 4, 2, 64
NUM_PAGES = 4
LENGTH = 300
"""Over two tiles, of one page or of two."""


def make_pages(kind: str, page_size: int, memory: Tensor | None) -> Pages:
    backend = make_backend("cuda")
    if kind in ("float32", "bfloat16"):
        return backend.float_pages(HEADS, KV_HEADS, DIM, NUM_PAGES, page_size, kind, memory)
    return backend.int8_pages(make_scheme(kind, HEADS, KV_HEADS, DIM), NUM_PAGES, page_size, memory)


def answers(pages: Pages) -> list[Tensor]:
    """Of a prompt, of single tokens after it, with a page that was copied; and what was stored."""
    generator = torch.Generator().manual_seed(3)
    k, v = torch.randn(2, LENGTH, KV_HEADS, DIM, generator=generator)
    q = torch.randn(LENGTH, HEADS, DIM, generator=generator)
    table, positions = np.array([2, 0, 3])[: -(-LENGTH // pages.page_size)], np.arange(LENGTH)
    slots = table[positions // pages.page_size] * pages.page_size + positions % pages.page_size
    past = LENGTH - 2
    pages.append(k[:past], v[:past], slots[:past], positions[:past])
    prompt = pages.attend(q[past - 17 : past], Spans.of([(17, past - 17, table)]))
    pages.append(k[past:], v[past:], slots[past:], positions[past:])
    pages.copy_page(int(table[0]), 1)
    table[0] = 1
    return [prompt, pages.attend(q[past:], Spans.of([(2, past, table)])), *pages.read(table, LENGTH)]


def memory_of(pages: Pages) -> Tensor:
    """uint8 [pages, bytes]."""
    assert isinstance(pages, Int8Pages | FloatPages)
    return pages.cache.memory if isinstance(pages, Int8Pages) else pages.memory


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize(
    ("kind", "page_size", "gap"),
    [("token", 128, 16), ("token", 256, 8 * 1024), ("head", 256, 48), ("bfloat16", 256, 16), ("float32", 128, 16)],
)
def test_pages_that_lie_apart(kind: str, page_size: int, gap: int) -> None:
    """They have the bits of pages without gaps, and nothing between them is written."""
    own = make_pages(kind, page_size, None)
    size = own.bytes_per_token * page_size
    whole = torch.full((NUM_PAGES, size + gap), 0x55, dtype=torch.uint8)
    given = make_pages(kind, page_size, whole[:, :size])
    assert given.bytes_per_token == own.bytes_per_token
    for found, expected in zip(answers(given), answers(own), strict=True):
        assert found.isfinite().all()
        assert same_bits(found, expected)
    assert (whole[:, size:] == 0x55).all()
    # The page that was copied is full.
    assert torch.equal(whole[1, :size], memory_of(own)[1])


@pytest.mark.parametrize(
    ("memory", "told"),
    [
        (torch.zeros(NUM_PAGES, 99, dtype=torch.uint8), "must be uint8 [4, 33792] on cpu, not torch.uint8 [4, 99]"),
        (torch.zeros(NUM_PAGES, 33792, dtype=torch.int8), "not torch.int8 [4, 33792] on cpu"),
        (torch.zeros(NUM_PAGES, 33792, dtype=torch.uint8, device="meta"), "[4, 33792] on meta"),
        (torch.zeros(NUM_PAGES, 33800, dtype=torch.uint8)[:, :33792], "begin at multiples of 16 bytes"),
        (torch.zeros(NUM_PAGES, 33808, dtype=torch.uint8)[:, 8:33800], "begin at multiples of 16 bytes"),
        (torch.zeros(1, 33792, dtype=torch.uint8).expand(NUM_PAGES, -1), "not overlap"),
        (torch.zeros(33792, NUM_PAGES, dtype=torch.uint8).T, "contiguous"),
    ],
    ids=["size", "type", "device", "distance", "begin", "overlap", "order"],
)
def test_memory_that_kernels_cannot_use(memory: Tensor, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        make_pages("token", 128, memory)
