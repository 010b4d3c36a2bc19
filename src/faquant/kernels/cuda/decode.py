"""Attention of single tokens: their keys are divided among programs, whose results are then merged."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..scheme import SPLIT, TILE
from . import tile
from .arithmetic import ROUNDED, hadamard
from .cache import DeviceSpans, Int8Cache, MappedQueries, SchemeTables
from .operands import constants, operands, rotation
from .tile import SPLIT_TILES

_TILES = SPLIT // TILE
_UNSPECIALIZED = ["first", "tokens", "last_map", "window", "width", "parts", "splits"]


@triton.jit
def row_tiles(positions, row, window):
    """A row's position, and its tiles: the first one and the end. No tile at position -1."""
    position = tl.load(positions + row)
    begin = position * 0
    if window is not None:
        begin = tl.maximum(position - window + 1, 0) // tile.TILE
    return position, begin, (position + tile.TILE) // tile.TILE


@triton.jit
def visible(number, position, window):
    """Which keys of a tile a row sees, [TILE]."""
    keys = tl.arange(0, tile.TILE) + number * tile.TILE
    seen = keys <= position
    if window is not None:
        seen = seen & (keys > position - window)
    return seen


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def attend_part(
    queries,
    scale,
    bias,
    k,
    v,
    k_scale,
    v_scale,
    v_static,
    v_offset,
    positions,
    sequences,
    block_tables,
    part_max,
    part_sum,
    part_out,
    first,
    tokens,
    last_map,
    window,
    width,
    parts,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    COLUMNS: tl.constexpr,
    LEVELS: tl.constexpr,
    QUANTIZED_SUM: tl.constexpr,
    TILES_IN_PAGE: tl.constexpr,
    MAP_TILES: tl.constexpr,
    TILES: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The partial result of one row and key/value head over TILES tiles, 1 or a whole split. Grid [Hkv, parts, rows].

    MAP_TILES: tiles that share a map; 0: there is one map.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    head = tl.program_id(0)
    part = tl.program_id(1)
    row = tl.program_id(2)
    position, begin, end = row_tiles(positions, first + row, window)
    # Parts are counted from the split in which the row begins.
    start = begin // SPLIT_TILES * SPLIT_TILES + part * TILES
    begin = tl.maximum(begin, start)
    end = tl.minimum(end, start + TILES)
    if begin >= end:
        return
    block_table = block_tables + tl.load(sequences + first + row) * width
    token = (first + row).to(tl.int64)
    at = token * HEADS + head * GROUP
    columns = tl.arange(0, COLUMNS)
    # Columns without a head repeat others, so that loads need no mask.
    heads = columns % GROUP
    if MAP_TILES == 0:
        q = tile.load_queries(queries, at, heads, D, PADDED)
        row_scale = tl.load(scale + at + heads)
    v_unit = None
    if v_static is not None:
        v_unit = tile.load_table(v_static, head, D, PADDED)
    v_zero = None
    if v_offset is not None:
        v_zero = tile.load_table(v_offset, head, D, PADDED)
    top, total, out = tile.empty(COLUMNS, PADDED)
    place = tile.tile_place(block_table, begin, TILES_IN_PAGE) * KV_HEADS + head
    seen = visible(begin, position, window)
    k_steps = tile.load_scales(k_scale, place, seen)
    v_steps = tile.load_scales(v_scale, place, seen)
    for number in tl.range(begin, end, num_stages=STAGES):
        place = tile.tile_place(block_table, number, TILES_IN_PAGE) * KV_HEADS + head
        # The next tile's scales arrive during this tile: two bytes are too few for the compiler's own pipeline.
        following = tl.minimum(number + 1, end - 1)
        next_place = tile.tile_place(block_table, following, TILES_IN_PAGE) * KV_HEADS + head
        next_seen = visible(following, position, window)
        next_k_steps = tile.load_scales(k_scale, next_place, next_seen)
        next_v_steps = tile.load_scales(v_scale, next_place, next_seen)
        if MAP_TILES > 0:
            number_of_map = tl.minimum(number // MAP_TILES, last_map).to(tl.int64)
            here = number_of_map * tokens * HEADS + at
            q = tile.load_queries(queries, here, heads, D, PADDED)
            row_scale = tl.load(scale + here + heads)
        row_bias = None
        if bias is not None:
            row_bias = tl.load(bias + here + heads)
        tile_top, tile_total, tile_out = tile.attend_tile(
            q,
            row_scale,
            row_bias,
            k,
            v,
            k_steps,
            v_steps,
            v_unit,
            v_zero,
            place,
            visible(number, position, window)[:, None],
            k_scale is not None,
            v_scale is not None,
            D,
            PADDED,
            COLUMNS,
            GROUP,
            LEVELS,
            QUANTIZED_SUM,
        )
        if TILES > 1:
            top, total, out = tile.merge(top, total, out, tile_top, tile_total, tile_out)
        else:
            top, total, out = tile_top, tile_total, tile_out
        k_steps, v_steps = next_k_steps, next_v_steps
    real = columns < GROUP
    channels = tl.arange(0, PADDED)
    to = (row.to(tl.int64) * parts + part) * HEADS + head * GROUP
    tl.store(part_max + to + columns, top, mask=real)
    tl.store(part_sum + to + columns, total, mask=real)
    mask = real[None, :] & (channels[:, None] < D)
    tl.store(part_out + to * D + (columns[None, :] * D + channels[:, None]), out, mask=mask)


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


@triton.jit(do_not_specialize=_UNSPECIALIZED)
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


@triton.jit(do_not_specialize=_UNSPECIALIZED)
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


@dataclass(frozen=True)
class Workspace:
    """Memory for `decode` of up to `rows` rows that see keys of up to `splits` splits. It can be used again at once.

    Attributes:
        by_split: results of the splits.
        by_tile: results of the tiles, or None if one program attends to all tiles of a split. The bits are the same.
    """

    by_split: Partials
    by_tile: Partials | None

    @classmethod
    def empty(
        cls, rows: int, splits: int, tables: SchemeTables, device: torch.device, by_tile: bool | None = None
    ) -> "Workspace":
        """by_tile: whether there is a program for each tile; None: if there would be too few programs for the GPU."""
        if by_tile is None:
            by_tile = rows * tables.kv_heads * splits < 2 * _processors(device)
        return cls(
            Partials.empty(rows, splits, tables, device),
            Partials.empty(rows, splits * _TILES, tables, device) if by_tile else None,
        )


def most_splits(length: int, window: int | None) -> int:
    """The most splits of which a row sees keys in a sequence of up to this many tokens."""
    splits = -(-length // SPLIT)
    return splits if window is None else min(splits, (window + SPLIT - 2) // SPLIT + 1)


def decode(
    queries: MappedQueries,
    cache: Int8Cache,
    tables: SchemeTables,
    spans: DeviceSpans,
    window: int | None,
    workspace: Workspace,
    out: Tensor,
    rows: range | None = None,
    warps: int = 4,
    stages: int | None = None,
) -> None:
    """Write the attention of some tokens to `out`, float32 [tokens, Hq, D]; it has the bits of reference.attend.

    Grids depend on the number of rows and the workspace only, and nothing is read from the device, so the launches can
    be captured in a CUDA graph. The workspace must have enough splits for the longest row (`most_splits`). Programs
    beyond a row's end return at once; a row at position -1 does nothing.

    Args:
        rows: consecutive tokens; None: all.
        stages: of the compiler's pipeline; None: two buffers (5) if they fit into the smallest shared memory, else one.
    """
    maps, tokens = queries.values.shape[:2]
    rows = range(tokens) if rows is None else rows
    if not rows:
        return
    if stages is None:
        stages = 5 if tables.dim <= 128 else 3
    by_split, by_tile = workspace.by_split, workspace.by_tile
    parts = by_split if by_tile is None else by_tile
    constant = constants(queries, cache, tables)
    attend_part[(tables.kv_heads, parts.count, len(rows))](
        *operands(queries, cache, tables, spans),
        *parts.tensors,
        rows.start,
        tokens,
        maps - 1,
        window,
        spans.block_tables.shape[1],
        parts.count,
        **constant,
        COLUMNS=max(8, triton.next_power_of_2(tables.group)),
        TILES=_TILES if by_tile is None else 1,
        STAGES=stages if by_tile is None else 1,
        num_warps=warps,
        **ROUNDED,
    )
    merging = {name: constant[name] for name in ("HEADS", "D", "PADDED")} | {"num_warps": 1} | ROUNDED
    place = rows.start, window, by_split.count
    if by_tile is not None:
        merge_tiles[(tables.heads, by_split.count, len(rows))](
            *by_tile.tensors, *by_split.tensors, spans.positions, *place, UNROLLED=8, **merging
        )
    merge_splits[(tables.heads, len(rows))](
        *by_split.tensors,
        spans.positions,
        out,
        *place,
        UNROLLED=min(8, triton.next_power_of_2(by_split.count)),
        **merging,
        **rotation(tables),
    )


@lru_cache
def _processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 1 for the interpreter."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 1
