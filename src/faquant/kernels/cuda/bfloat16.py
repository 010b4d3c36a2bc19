"""Decode with a bfloat16 cache, to compare with: the usual arithmetic, whose bits depend on the order of its sums."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..scheme import SPLIT
from . import tile
from .cache import DeviceSpans, SchemeTables
from .merging import Partials, merge_splits, row_tiles
from .operands import padded
from .tile import SPLIT_TILES


@triton.jit(
    do_not_specialize=["window", "width", "splits"],
    do_not_specialize_on_alignment=["positions", "sequences", "block_tables"],
)
def attend_split(
    queries,
    k,
    v,
    positions,
    sequences,
    block_tables,
    part_max,
    part_sum,
    part_out,
    window,
    width,
    splits,
    UNIT: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES_IN_PAGE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    STAGES: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """As decode.attend_part, of a whole split.

    UNIT: log2(e) / √D. OPERAND: the type of products' operands: Triton's interpreter multiplies the bits of bfloat16 as
    if they were integers, and needs float32.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    head = tl.program_id(0)
    split = tl.program_id(1)
    row = tl.program_id(2)
    position, begin, end = row_tiles(positions, row, window)
    start = begin // SPLIT_TILES * SPLIT_TILES + split * SPLIT_TILES
    begin = tl.maximum(begin, start)
    end = tl.minimum(end, start + SPLIT_TILES)
    if begin >= end:
        return
    oldest = position * 0
    if window is not None:
        oldest = position - window + 1
    block_table = block_tables + tl.load(sequences + row) * width
    columns = tl.arange(0, COLUMNS)
    channels = tl.arange(0, PADDED)
    keys = tl.arange(0, tile.TILE)
    at = row.to(tl.int64) * HEADS + head * GROUP
    q = tile.load_queries(queries, at, columns % GROUP, D, PADDED)
    top, total, out = tile.empty(COLUMNS, PADDED)
    for number in tl.range(begin, end, num_stages=STAGES):
        page, place = tile.tile_place(block_table, number, head, KV_HEADS, TILES_IN_PAGE, PAGE_STRIDE)
        seen = tile.keys_between(number, oldest, position, window)
        here = page + place * (tile.TILE * D)
        k_tile = tile.load_block(k + here + (keys[:, None] * D + channels[None, :]), channels[None, :] < D, D == PADDED)
        v_tile = tile.load_block(
            v + here + (channels[:, None] * tile.TILE + keys[None, :]), channels[:, None] < D, D == PADDED
        )
        scores = tl.where(seen[:, None], tl.dot(k_tile.to(OPERAND), q.to(OPERAND)) * UNIT, float("-inf"))
        both = tl.maximum(top, tl.max(scores, axis=0))
        p = tl.exp2(scores - both[None, :])
        old = tl.exp2(top - both)
        total = total * old + tl.sum(p, axis=0)
        out = out * old[None, :] + tl.dot(v_tile.to(OPERAND), p.to(tl.bfloat16).to(OPERAND))
        top = both
    real = columns < GROUP
    to = (row.to(tl.int64) * splits + split) * HEADS + head * GROUP
    tl.store(part_max + to + columns, top, mask=real)
    tl.store(part_sum + to + columns, total, mask=real)
    mask = real[None, :] & (channels[:, None] < D)
    tl.store(part_out + to * D + (columns[None, :] * D + channels[:, None]), out, mask=mask)


def attend_bfloat16(
    queries: Tensor,
    k: Tensor,
    v: Tensor,
    tables: SchemeTables,
    spans: DeviceSpans,
    window: int | None = None,
) -> Tensor:
    """The attention of single tokens, as `decode`, with k and v as in Int8Cache, but bfloat16.

    Values of v that nobody sees must be finite: unlike bytes, they could be NaN, and a mask would cost the pipeline.

    Args:
        queries: bfloat16 [tokens, Hq, D], after RoPE.
        tables: for the numbers of heads and channels only.

    Returns:
        float32 [tokens, Hq, D].
    """
    rows, heads, dim = queries.shape
    out = torch.empty(rows, heads, dim, device=queries.device)
    parts = Partials.empty(rows, spans.longest // SPLIT + 1, tables, out.device)
    dims = {"HEADS": heads, "D": dim, "PADDED": padded(dim)}
    attend_split[(tables.kv_heads, parts.count, rows)](
        queries,
        k,
        v,
        spans.positions,
        spans.sequences,
        spans.block_tables,
        *parts.tensors,
        window,
        spans.block_tables.shape[1],
        parts.count,
        UNIT=math.log2(math.e) / math.sqrt(dim),
        **dims,
        KV_HEADS=tables.kv_heads,
        COLUMNS=max(8, triton.next_power_of_2(tables.group)),
        TILES_IN_PAGE=k.shape[1],
        PAGE_STRIDE=k.stride(0),
        STAGES=3,
        OPERAND=tl.bfloat16 if out.device.type == "cuda" else tl.float32,
        num_warps=4,
    )
    merge_splits[(heads, rows)](
        *parts.tensors,
        spans.positions,
        out,
        0,
        window,
        parts.count,
        UNROLLED=min(8, triton.next_power_of_2(parts.count)),
        ROTATION=0,
        FACTOR=1.0,
        **dims,
        num_warps=1,
    )
    return out
