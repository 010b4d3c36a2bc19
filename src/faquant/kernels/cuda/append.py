"""Rows of k and v into an int8 cache: K mapped, V rotated, both rounded and scattered to their slots."""

import triton
import triton.language as tl

from .rows import absolute_peak, bytes_of, count_beyond, half_step_of, rotated


@triton.jit
def slot_place(
    slots,
    head,
    KV_HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    TILES_IN_PAGE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
):
    """As tile.tile_place for the tile of each slot, and the number of the slot in the tile."""
    number = slots // KEYS
    return number // TILES_IN_PAGE * PAGE_STRIDE, number % TILES_IN_PAGE * KV_HEADS + head, slots % KEYS


@triton.jit
def _rounded(x, columns, inside, head, static_scale, offset, scales, place, written, counter, DIM: tl.constexpr):
    """Rows of one head as int8: with a static scale [heads, DIM], or with their own, which are stored."""
    if static_scale is not None:
        at = head * DIM + columns
        steps = tl.div_rn(x, tl.load(static_scale + at, mask=inside, other=1.0).broadcast_to(x.shape))
        if offset is not None:
            steps = steps + tl.load(offset + at, mask=inside, other=0.0)
        count_beyond(steps, written[:, None] & inside, counter)
        x8 = bytes_of(steps, -128.0)
    else:
        step = half_step_of(absolute_peak(x))
        tl.store(scales + place, step, mask=written)
        x8 = bytes_of(tl.div_rn(x, step.to(tl.float32)[:, None].broadcast_to(x.shape)), -127.0)
    return x8


@triton.jit
def append_keys(
    x,
    slots,
    written,
    positions,
    columns,
    head,
    k,
    k_scales,
    k_center,
    k_equalizer,
    rotation_sign,
    k_scale,
    k_offset,
    beyond,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    KV_HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    TILES_IN_PAGE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    MAPS: tl.constexpr,
    MAP_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Store rows x of one head of K, after RoPE, in their slots; `positions` points to each row's position."""
    inside = columns < DIM
    of_map = head * DIM + columns
    if MAPS > 1:
        number = tl.minimum(tl.load(positions) // MAP_BLOCK, MAPS - 1)
        of_map = (number * KV_HEADS + head)[:, None] * DIM + columns
    if k_center is not None:
        x = x - tl.load(k_center + of_map, mask=inside, other=0.0)
    if k_equalizer is not None:
        x = tl.div_rn(x, tl.load(k_equalizer + of_map, mask=inside, other=1.0).broadcast_to(x.shape))
    x = rotated(x, columns, rotation_sign, ROWS, WIDTH, DIM, BLOCK, UNIT)
    page, place, key = slot_place(slots, head, KV_HEADS, KEYS, TILES_IN_PAGE, PAGE_STRIDE)
    scale_at = (page >> 1) + place * KEYS + key
    x8 = _rounded(x, columns, inside, head, k_scale, k_offset, k_scales, scale_at, written, beyond + 1, DIM)
    begin = page + place * (KEYS * DIM) + key * DIM
    tl.store(k + begin[:, None] + columns, x8, mask=written[:, None] & inside)


@triton.jit
def append_values(
    x,
    slots,
    written,
    columns,
    head,
    v,
    v_scales,
    v_scale,
    v_offset,
    beyond,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    KV_HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    TILES_IN_PAGE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Store rows x of one head of V in their slots."""
    inside = columns < DIM
    x = rotated(x, columns, None, ROWS, WIDTH, DIM, BLOCK, UNIT)
    page, place, key = slot_place(slots, head, KV_HEADS, KEYS, TILES_IN_PAGE, PAGE_STRIDE)
    scale_at = (page >> 1) + place * KEYS + key
    x8 = _rounded(x, columns, inside, head, v_scale, v_offset, v_scales, scale_at, written, beyond + 2, DIM)
    begin = page + place * (KEYS * DIM) + key
    tl.store(v + begin[:, None] + columns * KEYS, x8, mask=written[:, None] & inside)
