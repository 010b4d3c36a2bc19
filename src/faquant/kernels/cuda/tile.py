"""Attention of some queries over one tile of keys, and the merging of such partial results.

Keys are the rows and queries the columns of the scores, and channels the rows of the outputs: a group of up to eight
query heads fills the eight columns of an integer matrix instruction. A partial result is (maximum, sum, output), as
reference._Partial: float32 [COLUMNS], [COLUMNS] and [PADDED, COLUMNS].
"""

import triton
import triton.language as tl

from ..scheme import SPLIT as _SPLIT
from ..scheme import TILE as _TILE
from .arithmetic import ROUNDER, ROUNDER_BITS, SMALLEST_SCALE, exp2, sum_of_columns

TILE = tl.constexpr(_TILE)
SPLIT_TILES = tl.constexpr(_SPLIT // _TILE)


@triton.jit
def empty(COLUMNS: tl.constexpr, PADDED: tl.constexpr):
    """The partial result of no key."""
    top = tl.full((COLUMNS,), float("-inf"), tl.float32)
    return top, tl.zeros((COLUMNS,), tl.float32), tl.zeros((PADDED, COLUMNS), tl.float32)


@triton.jit
def weights(top, other):
    """The common maximum of two parts, and the factor of each.

    The factor of the part with the maximum is 2^0 = 1. Where both are empty it is 0 in the reference, times zeros.
    """
    both = tl.maximum(top, other)
    finite = tl.where(both == float("-inf"), 0.0, both)
    factor = exp2(tl.minimum(top, other) - finite)
    return both, tl.where(top < other, factor, 1.0), tl.where(other < top, factor, 1.0)


@triton.jit
def merge(top, total, out, tile_top, tile_total, tile_out):
    """reference._Partial.merge of one tile or split."""
    both, old, new = weights(top, tile_top)
    return both, total * old + tile_total * new, out * old[None, :] + tile_out * new[None, :]


@triton.jit
def tile_place(
    block_table, number, head, KV_HEADS: tl.constexpr, TILES_IN_PAGE: tl.constexpr, PAGE_STRIDE: tl.constexpr
):
    """Where a sequence's tile lies: the distance of its page from the first one, int64, in units of PAGE_STRIDE; and
    the number of the tile and head in the page."""
    page = tl.load(block_table + number // TILES_IN_PAGE).to(tl.int64)
    return page * PAGE_STRIDE, number % TILES_IN_PAGE * KV_HEADS + head


@triton.jit
def load_block(pointers, channel_mask, WHOLE: tl.constexpr):
    """Loads without a mask if all channels exist."""
    if WHOLE:
        block = tl.load(pointers)
    else:
        block = tl.load(pointers, mask=channel_mask, other=0)
    return block


@triton.jit
def load_queries(queries, base, columns, D: tl.constexpr, PADDED: tl.constexpr):
    """The rows base + columns of [maps · tokens · Hq, D] as int8 [PADDED, COLUMNS], with zeros below."""
    channels = tl.arange(0, PADDED)
    at = columns[None, :] * D + channels[:, None]
    return load_block(queries + base * D + at, channels[:, None] < D, D == PADDED)


@triton.jit
def load_table(table, head, D: tl.constexpr, PADDED: tl.constexpr):
    """One head's row of a static table [Hkv, D], with zeros behind it."""
    channels = tl.arange(0, PADDED)
    return tl.load(table + head * D + channels, mask=channels < D, other=0.0)


@triton.jit
def load_scales(scales, page, place, known):
    """The scales of a tile, [TILE], 0 where not known; a scalar that is not used if the scheme has static ones."""
    steps = 0.0
    if scales is not None:
        steps = tl.load(scales + (page >> 1) + place * TILE + tl.arange(0, TILE), mask=known, other=0.0)
    return steps


@triton.jit
def keys_between(number, oldest, last, window):
    """Which keys of a tile lie from `oldest` on, if there is a window, and up to `last`: [TILE]."""
    keys = tl.arange(0, TILE) + number * TILE
    inside = keys <= last
    if window is not None:
        inside = inside & (keys >= oldest)
    return inside


@triton.jit
def tile_scales(
    k_scale,
    v_scale,
    block_table,
    number,
    head,
    oldest,
    last,
    window,
    KV_HEADS: tl.constexpr,
    TILES_IN_PAGE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
):
    """load_scales of K and of V for a tile of a sequence, where some query sees keys from `oldest` to `last`."""
    page, place = tile_place(block_table, number, head, KV_HEADS, TILES_IN_PAGE, PAGE_STRIDE)
    known = keys_between(number, oldest, last, window)
    return load_scales(k_scale, page, place, known), load_scales(v_scale, page, place, known)


@triton.jit
def map_offset(number, last_map, tokens, HEADS: tl.constexpr, MAP_TILES: tl.constexpr):
    """Where the queries under the map of a tile begin, int64, in rows of [maps · tokens · Hq, D]."""
    return tl.minimum(number // MAP_TILES, last_map).to(tl.int64) * tokens * HEADS


@triton.jit
def attend_tile(
    q,
    row_scale,
    bias,
    k,
    v,
    k_steps,
    v_steps,
    v_unit,
    v_offset,
    page,
    place,
    seen,
    TOKEN_K: tl.constexpr,
    TOKEN_V: tl.constexpr,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    COLUMNS: tl.constexpr,
    USED: tl.constexpr,
    LEVELS: tl.constexpr,
    QUANTIZED_SUM: tl.constexpr,
):
    """The partial result of the tile at `page`, in bytes, and `place`, as tile_place returns them.

    Args:
        q: int8 [PADDED, COLUMNS], of which USED columns hold queries; row_scale, bias: float32 [COLUMNS], bias or None.
        k, v: as in Int8Cache.
        k_steps, v_steps: float16 [TILE], from load_scales; used if TOKEN_K and TOKEN_V.
        v_unit, v_offset: V's static scale and zero point, float32 [PADDED], or None.
        seen: which keys a query sees, [TILE, COLUMNS] or [TILE, 1].
    """
    keys = tl.arange(0, TILE)
    channels = tl.arange(0, PADDED)
    begin = page + place * (TILE * D)
    k_tile = load_block(k + begin + (keys[:, None] * D + channels[None, :]), channels[None, :] < D, D == PADDED)
    v_tile = load_block(v + begin + (channels[:, None] * TILE + keys[None, :]), channels[:, None] < D, D == PADDED)

    scores = tl.dot(k_tile, q, out_dtype=tl.int32).to(tl.float32) * row_scale[None, :]
    if TOKEN_K:
        scores = scores * k_steps.to(tl.float32)[:, None]
    if bias is not None:
        scores = scores + bias[None, :]
    scores = tl.where(seen, scores, float("-inf"))
    top = tl.max(scores, axis=0)
    p = exp2(scores - tl.where(top == float("-inf"), 0.0, top)[None, :])

    levels = tl.full((COLUMNS,), LEVELS, tl.float32)
    if TOKEN_V:
        weighted = p * v_steps.to(tl.float32)[:, None]
        peak = tl.maximum(tl.max(weighted, axis=0), SMALLEST_SCALE)
        steps = weighted * tl.div_rn(levels, peak)[None, :]
        step = tl.div_rn(peak, levels)
    else:
        steps = p * LEVELS
    if LEVELS == 127:
        steps = steps.to(tl.float16).to(tl.float32)
    # The integer is in the lowest bits. The lowest byte of ROUNDER_BITS is 0, and the next one too.
    bits = (steps + ROUNDER).to(tl.int32, bitcast=True)
    out = weighted_sum(bits, v_tile, PADDED, COLUMNS, USED, LEVELS).to(tl.float32)
    if v_offset is not None or QUANTIZED_SUM:
        p_sum = tl.sum(bits - ROUNDER_BITS, axis=0).to(tl.float32)
    if TOKEN_V:
        out = out * step[None, :]
    else:
        if v_offset is not None:
            out = out - p_sum[None, :] * v_offset[:, None]
        out = out * (1.0 / LEVELS) * v_unit[:, None]
    if QUANTIZED_SUM:
        total = tl.div_rn(p_sum, levels)
    else:
        total = sum_of_columns(p, TILE, COLUMNS)
    return top, total, out


@triton.jit
def weighted_sum(bits, v_tile, PADDED: tl.constexpr, COLUMNS: tl.constexpr, USED: tl.constexpr, LEVELS: tl.constexpr):
    """∑ P·V of a tile as int32 [PADDED, COLUMNS], below 2^30, from P in the lowest 16 bits of `bits` [TILE, COLUMNS].

    The matrix units multiply signed bytes only. With up to 32,639 levels, P = 256 · high + low has a signed low byte
    and a high one up to 127. Otherwise the low byte is taken minus 128, and 128 · ∑ V comes from a column of ones.
    """
    if LEVELS == 127:
        out = tl.dot(v_tile, bits.to(tl.int8), out_dtype=tl.int32)
    elif LEVELS == 32639:
        high = tl.dot(v_tile, ((bits + 128) >> 8).to(tl.int8), out_dtype=tl.int32)
        out = tl.dot(v_tile, bits.to(tl.int8), out_dtype=tl.int32) + high * 256
    else:
        low = (bits ^ 128).to(tl.int8)
        last = tl.arange(0, COLUMNS)[None, :] == COLUMNS - 1
        if USED < COLUMNS:
            out = tl.dot(v_tile, tl.where(last, 1, low).to(tl.int8), out_dtype=tl.int32)
            v_sum = tl.sum(tl.where(last, out, 0), axis=1)
        else:
            out = tl.dot(v_tile, low, out_dtype=tl.int32)
            v_sum = tl.max(tl.dot(v_tile, tl.full((TILE, 16), 1, tl.int8), out_dtype=tl.int32), axis=1)
        out += 128 * v_sum[:, None]
        if LEVELS == 32767:
            out += 256 * tl.dot(v_tile, (bits >> 8).to(tl.int8), out_dtype=tl.int32)
    return out
