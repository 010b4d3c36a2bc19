"""Attention of many tokens of one sequence: a program has several tokens' heads as columns, and sees all their keys."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tile
from .arithmetic import ROUNDED, hadamard
from .cache import DeviceSpans, Int8Cache, MappedQueries, SchemeTables
from .operands import constants, operands, rotation
from .tile import SPLIT_TILES


@triton.jit(
    do_not_specialize=["first", "count", "start", "tokens", "last_map", "window", "width"],
    do_not_specialize_on_alignment=["sequences", "block_tables"],
)
def attend_chunk(
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
    result,
    first,
    count,
    start,
    tokens,
    last_map,
    window,
    width,
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
    ROTATION: tl.constexpr,
    FACTOR: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The attention of COLUMNS // group of the `count` tokens from row `first` on, at `start` in their sequence.

    Grid [Hkv, blocks of tokens]. MAP_TILES: tiles that share a map; 0: there is one map.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    TOKENS: tl.constexpr = COLUMNS // GROUP
    head = tl.program_id(0)
    # The last tokens have the most keys, so their programs begin first.
    block = (tl.num_programs(1) - 1 - tl.program_id(1)) * TOKENS
    columns = tl.arange(0, COLUMNS)
    channels = tl.arange(0, PADDED)
    keys = tl.arange(0, tile.TILE)
    token = columns // GROUP
    real = (token < TOKENS) & (block + token < count)
    # Columns without a query repeat others, so that loads need no mask.
    token = tl.where(real, token, 0)
    inside = token * HEADS + columns % GROUP
    at = (first + block).to(tl.int64) * HEADS + head * GROUP
    position = start + block + token
    last = start + tl.minimum(block + TOKENS, count) - 1
    oldest = last * 0
    if window is not None:
        oldest = tl.maximum(start + block - window + 1, 0)
    first_tile = oldest // tile.TILE
    end = last // tile.TILE + 1
    first_split = first_tile // SPLIT_TILES * SPLIT_TILES
    block_table = block_tables + tl.load(sequences + first) * width

    if MAP_TILES == 0:
        q = tile.load_queries(queries, at, inside, D, PADDED)
        row_scale = tl.load(scale + at + inside)
    v_unit = None
    if v_static is not None:
        v_unit = tile.load_table(v_static, head, D, PADDED)
    v_zero = None
    if v_offset is not None:
        v_zero = tile.load_table(v_offset, head, D, PADDED)
    whole_top = tl.full((COLUMNS,), float("-inf"), tl.float32)
    whole_total = tl.zeros((COLUMNS,), tl.float32)
    k_steps, v_steps = tile.tile_scales(
        k_scale, v_scale, block_table, first_tile, head, oldest, last, window, KV_HEADS, TILES_IN_PAGE, PAGE_STRIDE
    )
    for split in range(first_split, end, SPLIT_TILES):
        top, total, out = tile.empty(COLUMNS, PADDED)
        for number in tl.range(tl.maximum(split, first_tile), tl.minimum(split + SPLIT_TILES, end), num_stages=STAGES):
            page, place = tile.tile_place(block_table, number, head, KV_HEADS, TILES_IN_PAGE, PAGE_STRIDE)
            # As in decode, the next tile's scales arrive during this tile.
            following = tl.minimum(number + 1, end - 1)
            next_k_steps, next_v_steps = tile.tile_scales(
                k_scale,
                v_scale,
                block_table,
                following,
                head,
                oldest,
                last,
                window,
                KV_HEADS,
                TILES_IN_PAGE,
                PAGE_STRIDE,
            )
            if MAP_TILES > 0:
                here = at + tile.map_offset(number, last_map, tokens, HEADS, MAP_TILES)
                q = tile.load_queries(queries, here, inside, D, PADDED)
                row_scale = tl.load(scale + here + inside)
            row_bias = None
            if bias is not None:
                row_bias = tl.load(bias + here + inside)
            key = keys + number * tile.TILE
            seen = key[:, None] <= position[None, :]
            if window is not None:
                seen = seen & (key[:, None] > position[None, :] - window)
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
                seen,
                k_scale is not None,
                v_scale is not None,
                D,
                PADDED,
                COLUMNS,
                TOKENS * GROUP,
                LEVELS,
                QUANTIZED_SUM,
            )
            top, total, out = tile.merge(top, total, out, tile_top, tile_total, tile_out)
            k_steps, v_steps = next_k_steps, next_v_steps
        # Splits are merged in the result's memory, and pointers made here: registers are scarce in the loop.
        to = result + at * D + (inside[None, :] * D + channels[:, None])
        mask = real[None, :] & (channels[:, None] < D)
        if split > first_split:
            before = tl.load(to, mask=mask, other=0.0)
        else:
            before = tl.zeros((PADDED, COLUMNS), tl.float32)
        whole_top, whole_total, out = tile.merge(whole_top, whole_total, before, top, total, out)
        if split + SPLIT_TILES >= end:
            out = tl.div_rn(out, tl.broadcast_to(whole_total[None, :], (PADDED, COLUMNS)))
            if ROTATION > 0:
                out = tl.trans(hadamard(tl.trans(out), COLUMNS, PADDED, ROTATION, FACTOR))
        tl.store(to, out, mask=mask)
        tl.debug_barrier()


def prefill(
    queries: MappedQueries,
    cache: Int8Cache,
    tables: SchemeTables,
    spans: DeviceSpans,
    window: int | None,
    out: Tensor,
    rows: range,
    start: int,
    shape: tuple[int, int] | None = None,
) -> None:
    """Write the attention of `rows`, consecutive tokens of one sequence from the position `start` on, to `out`, float32
    [tokens, Hq, D]; it has the bits of reference.attend.

    shape: columns and warps of a program; None: what suits the GPU.
    """
    maps, tokens = queries.values.shape[:2]
    columns, warps = shape or _shape(out.device, tables.dim)
    columns = max(columns, int(triton.next_power_of_2(tables.group)))
    blocks = -(-len(rows) // (columns // tables.group))
    attend_chunk[(tables.kv_heads, blocks)](
        *operands(queries, cache, tables, spans),
        out,
        rows.start,
        len(rows),
        start,
        tokens,
        maps - 1,
        window,
        spans.block_tables.shape[1],
        **constants(queries, cache, tables),
        **rotation(tables),
        COLUMNS=columns,
        STAGES=3,
        num_warps=warps,
        **ROUNDED,
    )


@lru_cache
def _shape(device: torch.device, dim: int) -> tuple[int, int]:
    """Columns and warps.

    Before Hopper, operands of matrix instructions need registers, and two warps need the fewest instructions per score.
    Hopper takes operands from memory, and with 32 columns its L2 cache is read half as often.
    """
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9
    if dim > 128:
        return 16, 4
    return (32, 4) if hopper else (16, 2)
