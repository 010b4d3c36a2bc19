"""Appends k and v to a bfloat16 cache, to compare int8 with."""

import triton
import triton.language as tl
from torch import Tensor

from ..scheme import TILE
from .append import slot_place
from .arithmetic import ROUNDED
from .rows import TokenBlocks, heads_of, width_of


@triton.jit
def bfloat16_of(x):
    """The nearest bfloat16, halves to even, as csrc/generic/bfloat16_rows-inl.h: 0 below 2^-62, and one kind of NaN."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = bits + ((bits >> 16) & 1) + 0x7FFF
    rounded = tl.where((rounded & 0x7FFFFFFF) < (127 - 62) << 23, 0, rounded)
    rounded = tl.where(x != x, 0x7FC00000, rounded)
    return (rounded >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit(do_not_specialize=["tokens"])
def _append_bfloat16(
    keys,
    values,
    slots,
    tokens,
    key_stride,
    value_stride,
    k,
    v,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    KV_HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    TILES_IN_PAGE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
):
    """Grid: blocks of ROWS tokens; heads."""
    head = tl.program_id(1)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(token, tokens - 1).to(tl.int64)
    slot = tl.load(slots + row)
    columns = tl.arange(0, WIDTH)[None, :]
    inside = columns < DIM
    written = ((token < tokens) & (slot >= 0))[:, None] & inside
    page, place, key = slot_place(slot, head, KV_HEADS, KEYS, TILES_IN_PAGE, PAGE_STRIDE)
    x = tl.load(keys + (row * key_stride + head * DIM)[:, None] + columns, mask=inside, other=0.0)
    y = tl.load(values + (row * value_stride + head * DIM)[:, None] + columns, mask=inside, other=0.0)
    tile = page + place * (KEYS * DIM)
    tl.store(k + (tile + key * DIM)[:, None] + columns, bfloat16_of(x), mask=written)
    tl.store(v + (tile + key)[:, None] + columns * KEYS, bfloat16_of(y), mask=written)


def append_bfloat16(k: Tensor, v: Tensor, slots: Tensor, cache_k: Tensor, cache_v: Tensor) -> None:
    """Store keys and values as bfloat16.

    Args:
        k, v: float32 [tokens, Hkv, D], k after RoPE. Tokens may be any distance apart.
        slots: int64 [tokens]: page · page_size + offset. Nothing is stored for negative slots.
        cache_k: bfloat16 [pages, tiles, Hkv, TILE, D].
        cache_v: bfloat16 [pages, tiles, Hkv, D, TILE], pages as far apart as cache_k's.
    """
    k, v = heads_of(k), heads_of(v)
    tokens, heads, dim = k.shape
    if tokens == 0:
        return
    blocks = TokenBlocks.of(tokens, dim)
    _append_bfloat16[(blocks.count, heads)](
        k,
        v,
        slots,
        tokens,
        k.stride(0),
        v.stride(0),
        cache_k,
        cache_v,
        ROWS=blocks.rows,
        WIDTH=width_of(dim),
        DIM=dim,
        KV_HEADS=heads,
        KEYS=TILE,
        TILES_IN_PAGE=cache_k.shape[1],
        PAGE_STRIDE=cache_k.stride(0),
        num_warps=blocks.warps,
        **ROUNDED,
    )
