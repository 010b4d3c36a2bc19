"""Attention of single tokens: their keys are divided among programs, whose results are then merged."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..scheme import SPLIT, TILE
from . import tile
from .arithmetic import ROUNDED
from .cache import DeviceSpans, Int8Cache, MappedQueries, SchemeTables
from .merging import Partials, merge_splits, merge_tiles, row_tiles
from .operands import constants, operands, rotation
from .tile import SPLIT_TILES

_TILES = SPLIT // TILE


@triton.jit(
    do_not_specialize=["first", "tokens", "last_map", "window", "width", "parts"],
    do_not_specialize_on_alignment=["positions", "sequences", "block_tables"],
)
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
    PAGE_STRIDE: tl.constexpr,
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
    oldest = position * 0
    if window is not None:
        oldest = position - window + 1
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
    k_steps, v_steps = tile.tile_scales(
        k_scale, v_scale, block_table, begin, head, oldest, position, window, KV_HEADS, TILES_IN_PAGE, PAGE_STRIDE
    )
    for number in tl.range(begin, end, num_stages=STAGES):
        page, place = tile.tile_place(block_table, number, head, KV_HEADS, TILES_IN_PAGE, PAGE_STRIDE)
        # The next tile's scales arrive during this tile: two bytes are too few for the compiler's own pipeline.
        following = tl.minimum(number + 1, end - 1)
        next_k_steps, next_v_steps = tile.tile_scales(
            k_scale,
            v_scale,
            block_table,
            following,
            head,
            oldest,
            position,
            window,
            KV_HEADS,
            TILES_IN_PAGE,
            PAGE_STRIDE,
        )
        if MAP_TILES > 0:
            here = at + tile.map_offset(number, last_map, tokens, HEADS, MAP_TILES)
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
            page,
            place,
            tile.keys_between(number, oldest, position, window)[:, None],
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
) -> None:
    """Write the attention of some tokens to `out`, float32 [tokens, Hq, D]; it has the bits of reference.attend.

    Grids depend on the number of rows and the workspace only, and nothing is read from the device, so the launches can
    be captured in a CUDA graph. The workspace must have enough splits for the longest row (`most_splits`). Programs
    beyond a row's end return at once; a row at position -1 does nothing.

    Args:
        rows: consecutive tokens; None: all.
    """
    maps, tokens = queries.values.shape[:2]
    rows = range(tokens) if rows is None else rows
    if not rows:
        return
    # Two buffers (5 stages behind the page table) if they fit into the smallest shared memory, else one.
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
        num_warps=4,
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
