"""The GPU's attention has the bits of the reference for each sequence, whatever its neighbors, chunks and programs are.

Nothing that no query sees is read: those keys, values and scales are poison in every test.
"""

import dataclasses
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor

from faquant.kernels.cuda.attention import attend
from faquant.kernels.cuda.decode import Workspace, decode, most_splits
from faquant.kernels.cuda.prefill import prefill
from faquant.kernels.scheme import MAP_BLOCK, SPLIT, AttentionScheme
from oracles.cuda_cache import CPU, Batch
from oracles.schemes import make_scheme

pytestmark = pytest.mark.cuda

# Scales, levels of P, query heads, kv heads, head_dim, more of the scheme. Heads per kv head: 1, 4, 7, 8, 16.
SCHEMES: list[tuple[str, int, int, int, int, dict[str, Any]]] = [
    ("token", 32639, 8, 2, 64, {}),
    ("token", 32767, 8, 1, 128, {"v_rotation_block": 128}),
    ("token", 255, 7, 1, 80, {"v_rotation_block": 16}),
    ("token", 127, 2, 2, 96, {}),
    ("head", 32639, 16, 1, 64, {"quantized_sum": True}),
    ("head", 127, 7, 1, 80, {}),
    ("channel", 255, 16, 1, 80, {}),
    ("channel, zero points", 32767, 8, 2, 64, {"quantized_sum": True}),
    ("channel, zero points", 32639, 1, 1, 256, {}),
    ("channel, zero points", 127, 8, 1, 128, {"quantized_sum": True}),
]


def by_decode(batch: Batch, by_tile: bool = False, more_splits: int = 0) -> Tensor:
    ends = [count + start for count, start in zip(batch.spans.counts, batch.spans.starts, strict=True)]
    splits = most_splits(max(ends), batch.window) + more_splits
    workspace = Workspace.empty(len(batch.expected), splits, batch.tables, CPU, by_tile)
    for parts in (workspace.by_split, workspace.by_tile):
        for tensor in () if parts is None else parts.tensors:
            tensor.fill_(torch.nan)
    out = torch.full_like(batch.expected, torch.nan)
    decode(batch.queries, batch.cache, batch.tables, batch.spans, batch.window, workspace, out)
    return out


def by_prefill(batch: Batch, chunk: int = 10**6, shape: tuple[int, int] = (32, 4)) -> Tensor:
    out = torch.full_like(batch.expected, torch.nan)
    ends = accumulate(batch.spans.counts)
    for count, end, start in zip(batch.spans.counts, ends, batch.spans.starts, strict=True):
        for first in range(0, count, chunk):
            rows = range(end - count + first, min(end - count + first + chunk, end))
            prefill(
                batch.queries, batch.cache, batch.tables, batch.spans, batch.window, out, rows, start + first, shape
            )
    return out


@pytest.mark.parametrize(("scales", "levels", "heads", "kv_heads", "dim", "more"), SCHEMES)
def test_schemes(scales: str, levels: int, heads: int, kv_heads: int, dim: int, more: dict[str, Any]) -> None:
    scheme = make_scheme(scales, heads, kv_heads, dim, p_levels=levels, **more)
    batch = Batch.random(scheme, [(2, 127), (1, 0)])
    batch.check(by_decode(batch))
    batch.check(by_prefill(batch))


@pytest.mark.parametrize("by_tile", [False, True])
def test_lengths(by_tile: bool) -> None:
    """With a workspace that was made for longer sequences."""
    parts = [(1, length - 1) for length in (1, 127, 128, 129, 2300)]
    batch = Batch.random(AttentionScheme(4, 1, 64), parts)
    batch.check(by_decode(batch, by_tile, more_splits=1))


def test_chunks_across_splits() -> None:
    """Prefill merges a second split into the first; 30 tokens are several programs, whose blocks end anywhere."""
    batch = Batch.random(AttentionScheme(4, 1, 64), [(30, SPLIT - 20)])
    batch.check(by_prefill(batch, shape=(64, 4)))
    batch.check(by_prefill(batch, chunk=27))


@pytest.mark.parametrize("window", [1, 100, 129, 2100])
def test_windows(window: int) -> None:
    """Windows that begin in the last tile, in the one before, and in an earlier split; some rows of the chunk see no
    key of its first tiles."""
    scheme = make_scheme("channel, zero points" if window == 100 else "token", 4, 1, 64)
    parts = [(3, 2300)] if window == 2100 else [(3, 2 * SPLIT - 1), (9, 250), (1, 20)]
    batch = Batch.random(scheme, parts, window)
    batch.check(by_decode(batch, by_tile=window == 129))
    batch.check(by_prefill(batch))


@pytest.mark.parametrize(
    ("tables", "map_block", "window"), [("both", 128, None), ("both", 384, 300), ("equalizers", 256, None)]
)
def test_maps(tables: str, map_block: int, window: int | None) -> None:
    """Maps by position. The last one covers all later keys, and tokens that do not reach a map have garbage for it."""
    torch.manual_seed(1)
    maps: dict[str, Any] = {"k_equalizer": torch.rand(3, 1, 64) + 0.5}
    if tables == "both":
        maps["k_center"] = torch.randn(3, 1, 64)
    scheme = AttentionScheme(4, 1, 64, **maps, rotation_block=64, map_block=map_block)
    batch = Batch.random(scheme, [(2, 5 * 128 - 1), (1, 3), (2, 2 * map_block - 1)], window)
    batch.check(by_decode(batch, by_tile=map_block == 384))
    batch.check(by_prefill(batch))


def test_maps_of_many_positions() -> None:
    """In the product's block size, with more maps in the scheme than tokens reach."""
    torch.manual_seed(2)
    scheme = AttentionScheme(7, 1, 64, k_center=torch.randn(6, 1, 64), k_equalizer=torch.rand(6, 1, 64) + 0.5)
    assert scheme.map_block == MAP_BLOCK
    batch = Batch.random(scheme, [(2, SPLIT - 1)])
    batch.check(by_decode(batch))
    batch.check(by_prefill(batch))


@pytest.mark.parametrize("page_size", [256, 384])
def test_pages_of_several_tiles(page_size: int) -> None:
    batch = Batch.random(AttentionScheme(2, 2, 64), [(3, 800), (1, 129)], page_size=page_size)
    batch.check(by_decode(batch))
    batch.check(by_prefill(batch))


def test_attend_chooses_kernels() -> None:
    """Decode and prefill in one batch, in any order, and each row as if it were alone."""
    batch = Batch.random(AttentionScheme(4, 2, 64), [(1, 130), (20, 120), (18, 0), (2, 5), (1, 300)])
    batch.check(attend(batch.queries, batch.cache, batch.tables, batch.spans, None))
    out = torch.full_like(batch.expected, torch.nan)
    assert attend(batch.queries, batch.cache, batch.tables, batch.spans, None, out) is out
    batch.check(out)


def test_some_rows_and_unused_rows() -> None:
    """A captured graph has rows to spare: those at position -1 read nothing and leave the output as it is."""
    batch = Batch.random(AttentionScheme(4, 1, 64), [(1, 140), (1, 0), (1, 128)])
    positions = batch.spans.positions.clone()
    positions[1] = -1
    spans = dataclasses.replace(batch.spans, positions=positions)
    out = torch.full_like(batch.expected, 7.0)
    workspace = Workspace.empty(2, 1, batch.tables, CPU, by_tile=True)
    decode(batch.queries, batch.cache, batch.tables, spans, None, workspace, out, range(1, 3))
    assert (out[:2] == 7.0).all()
    out[:2] = batch.expected[:2]
    batch.check(out)


def test_most_splits() -> None:
    for window in (None, 1, 2, SPLIT, SPLIT + 1, SPLIT + 2):
        for length in (1, SPLIT, SPLIT + 1, 3 * SPLIT, 3 * SPLIT + 1):
            seen = [
                position // SPLIT - (0 if window is None else max(0, position - window + 1)) // SPLIT + 1
                for position in range(length)
            ]
            assert max(seen) <= most_splits(length, window) <= max(seen) + 1
