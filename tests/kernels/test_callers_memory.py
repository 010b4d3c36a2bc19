"""Pages in memory of the caller's, as vLLM's are: they may lie apart, and other things between them."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from faquant.kernels import _C
from faquant.kernels.arrays import Stored
from faquant.kernels.backend import Pages
from faquant.kernels.cpu import CpuBackend
from faquant.kernels.pages import FloatPages, Spans
from oracles.pages import poison, stores
from oracles.schemes import SCALES, make_scheme

BACKEND = CpuBackend()
HEADS, KV_HEADS, DIM = 6, 2, 16
NUM_PAGES, LENGTH = 5, 300
SIZE = 9_216
"""Bytes of a page of 128 tokens with a scale per token and head."""


def make_pages(kind: str, page_size: int, memory: Stored | None) -> Pages:
    if kind in ("float32", "bfloat16"):
        return BACKEND.float_pages(HEADS, KV_HEADS, DIM, NUM_PAGES, page_size, kind, memory)
    return BACKEND.int8_pages(make_scheme(kind, HEADS, KV_HEADS, DIM), NUM_PAGES, page_size, memory)


def answer(pages: Pages) -> Any:
    """Attention of all tokens of one sequence, in pages that held garbage."""
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(LENGTH, HEADS, DIM, generator=generator)
    k, v = torch.randn(2, LENGTH, KV_HEADS, DIM, generator=generator)
    poison(pages)
    table, positions = np.array([4, 0, 2]), np.arange(LENGTH)
    slots = table[positions // pages.page_size] * pages.page_size + positions % pages.page_size
    pages.append(k, v, slots, positions)
    return pages.attend(q, Spans.of([(LENGTH, 0, table)]))


def same_bits(a: Any, b: Any) -> bool:
    return np.array_equal(*(np.ascontiguousarray(x).view(np.uint8) for x in (a, b)))


@pytest.mark.parametrize("kind", [*SCALES, "bfloat16", "float32"])
@pytest.mark.parametrize(("page_size", "gap"), [(128, 192), (256, 64)])
def test_pages_that_lie_apart(kind: str, page_size: int, gap: int) -> None:
    """They have the bits of pages of their own, and nothing between them is written."""
    own = make_pages(kind, page_size, None)
    size = own.bytes_per_token * page_size
    whole = np.full(NUM_PAGES * (size + gap) + 64, 0x55, np.uint8)
    begin = -whole.ctypes.data % 64
    memory = whole[begin : begin + NUM_PAGES * (size + gap)].reshape(NUM_PAGES, size + gap)
    given = make_pages(kind, page_size, memory[:, :size])
    assert same_bits(answer(given), answer(own))
    assert (memory[:, size:] == 0x55).all()
    for ours, theirs in zip(stores(given), stores(own), strict=True):
        assert np.shares_memory(ours, memory)
        # Pages that are full.
        full = [4, 0] if page_size == 128 else [4]
        assert same_bits(ours[full], theirs[full])


def lying(distance: int, begin: int = 0) -> Stored:
    """Pages at this distance from each other in bytes, the first one `begin` bytes after the start of a cache line."""
    whole = np.zeros(64 + begin + NUM_PAGES * max(distance, SIZE), np.uint8)
    first = whole[-whole.ctypes.data % 64 + begin :]
    return np.lib.stride_tricks.as_strided(first, (NUM_PAGES, SIZE), (distance, 1))


@pytest.mark.parametrize(
    ("memory", "told"),
    [
        (np.zeros((NUM_PAGES, 99), np.uint8), f"must be uint8 [{NUM_PAGES}, {SIZE}], not uint8 [{NUM_PAGES}, 99]"),
        (np.zeros((NUM_PAGES, SIZE), np.int8), f"not int8 [{NUM_PAGES}, {SIZE}]"),
        (lying(SIZE + 32), "begin at multiples of 64 bytes"),
        (lying(SIZE, 8), "begin at multiples of 64 bytes"),
        (lying(SIZE - 64), "not overlap"),
        (np.zeros((SIZE, NUM_PAGES), np.uint8).T, "contiguous"),
    ],
    ids=["size", "type", "distance", "begin", "overlap", "order"],
)
def test_memory_that_kernels_cannot_use(memory: Stored, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        make_pages("token", 128, memory)


def test_the_extension_checks_distances_too() -> None:
    pages = FloatPages(HEADS, KV_HEADS, DIM, 3, 128)
    overlapping = np.lib.stride_tricks.as_strided(pages.k, (2, 128, KV_HEADS, DIM), (64, *pages.k.strides[1:]))
    with pytest.raises(ValueError, match="k must be a contiguous array"):
        _C.FloatCache(heads=HEADS, k=overlapping, v=pages.v[:2])
    with pytest.raises(ValueError, match="must be equally far apart"):
        _C.FloatCache(heads=HEADS, k=pages.k[:2], v=np.zeros((2, *pages.v.shape[1:]), np.float32))
