"""Partial results of parts of a row's keys, and their merging in the reference's order."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tile
from .arithmetic import hadamard
from .cache import SchemeTables
from .tile import SPLIT_TILES


@dataclass(frozen=True)
class Partials:
    """Partial results of parts of rows: float32 [rows, parts, Hq], and `out` [rows, parts, Hq, D]."""

    max: Tensor
    sum: Tensor
    out: Tensor

    @classmethod
    def empty(cls, rows: int, parts: int, tables: SchemeTables, device: torch.device) -> "Partials":
        """With garbage in it."""
        shape = rows, parts, tables.heads
        return cls(
            torch.empty(shape, device=device),
            torch.empty(shape, device=device),
            torch.empty(*shape, tables.dim, device=device),
        )

    @property
    def count(self) -> int:
        """Parts of a row."""
        return self.max.shape[1]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.max, self.sum, self.out


@triton.jit
def row_tiles(positions, row, window):
    """A row's position, and its tiles: the first one and the end. No tile at position -1."""
    position = tl.load(positions + row)
    begin = position * 0
    if window is not None:
        begin = tl.maximum(position - window + 1, 0) // tile.TILE
    return position, begin, (position + tile.TILE) // tile.TILE


@triton.jit
def merged(
    part_max,
    part_sum,
    part_out,
    at,
    count,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    UNROLLED: tl.constexpr,
):
    """`count` partial results of a head, one after another, HEADS rows apart from row `at` on.

    UNROLLED of them are loaded together. Those beyond the end change no bit.
    """
    channels = tl.arange(0, PADDED)
    top = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    out = tl.zeros((PADDED,), tl.float32)
    one = tl.arange(0, 1)
    for begin in range(0, count, UNROLLED):
        for i in tl.static_range(UNROLLED):
            here = at + (begin + i) * HEADS
            inside = begin + i < count
            part_top = tl.load(part_max + here + one, mask=inside, other=float("-inf"))
            part_total = tl.load(part_sum + here + one, mask=inside, other=0.0)
            add = tl.load(part_out + here * D + channels, mask=inside & (channels < D), other=0.0)
            top, old, new = tile.weights(top, part_top)
            total = total * old + part_total * new
            out = out * old + add * new
    return top, total, out


@triton.jit(do_not_specialize=["first", "window", "splits"], do_not_specialize_on_alignment=["positions"])
def merge_tiles(
    tile_max,
    tile_sum,
    tile_out,
    split_max,
    split_sum,
    split_out,
    positions,
    first,
    window,
    splits,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    UNROLLED: tl.constexpr,
):
    """Merge the tiles of each split. Grid [Hq, splits, rows]."""
    head = tl.program_id(0)
    split = tl.program_id(1)
    row = tl.program_id(2)
    _, begin, end = row_tiles(positions, first + row, window)
    origin = begin // SPLIT_TILES * SPLIT_TILES
    start = origin + split * SPLIT_TILES
    begin = tl.maximum(begin, start)
    count = tl.minimum(end, start + SPLIT_TILES) - begin
    if count <= 0:
        return
    base = row.to(tl.int64) * splits
    at = (base * SPLIT_TILES + begin - origin) * HEADS + head
    top, total, out = merged(tile_max, tile_sum, tile_out, at, count, HEADS, D, PADDED, UNROLLED)
    to = (base + split) * HEADS + head
    one = tl.arange(0, 1)
    channels = tl.arange(0, PADDED)
    tl.store(split_max + to + one, top)
    tl.store(split_sum + to + one, total)
    tl.store(split_out + to * D + channels, out, mask=channels < D)


@triton.jit(do_not_specialize=["first", "window", "splits"], do_not_specialize_on_alignment=["positions"])
def merge_splits(
    split_max,
    split_sum,
    split_out,
    positions,
    result,
    first,
    window,
    splits,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    UNROLLED: tl.constexpr,
    ROTATION: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """Merge the splits of each row, and rotate V back. Grid [Hq, rows]."""
    head = tl.program_id(0)
    row = tl.program_id(1)
    _, begin, end = row_tiles(positions, first + row, window)
    count = (end + SPLIT_TILES - 1) // SPLIT_TILES - begin // SPLIT_TILES
    if count <= 0:
        return
    at = row.to(tl.int64) * splits * HEADS + head
    _, total, out = merged(split_max, split_sum, split_out, at, count, HEADS, D, PADDED, UNROLLED)
    out = tl.div_rn(out, tl.broadcast_to(total, (PADDED,)))
    if ROTATION > 0:
        out = tl.reshape(hadamard(tl.reshape(out, (1, PADDED)), 1, PADDED, ROTATION, FACTOR), (PADDED,))
    channels = tl.arange(0, PADDED)
    to = ((first + row).to(tl.int64) * HEADS + head) * D
    tl.store(result + to + channels, out, mask=channels < D)
