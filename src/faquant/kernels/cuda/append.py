"""Appends k and v to an int8 cache: K mapped, V rotated, both rounded and scattered to their slots."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..scheme import TILE
from .arithmetic import ROUNDED, hadamard_factor
from .cache import Int8Cache, SchemeTables
from .rows import (
    TokenBlocks,
    absolute_peak,
    bytes_of,
    count_beyond,
    half_step_of,
    heads_of,
    rotated,
    width_of,
)


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
    place = (slots // KEYS * KV_HEADS + head) * KEYS + slots % KEYS
    x8 = _rounded(x, columns, inside, head, k_scale, k_offset, k_scales, place, written, beyond + 1, DIM)
    tl.store(k + place[:, None] * DIM + columns, x8, mask=written[:, None] & inside)


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
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Store rows x of one head of V in their slots."""
    inside = columns < DIM
    x = rotated(x, columns, None, ROWS, WIDTH, DIM, BLOCK, UNIT)
    tile, key = slots // KEYS * KV_HEADS + head, slots % KEYS
    place = tile * KEYS + key
    x8 = _rounded(x, columns, inside, head, v_scale, v_offset, v_scales, place, written, beyond + 2, DIM)
    to = v + (tile * (DIM * KEYS) + key)[:, None] + columns * KEYS
    tl.store(to, x8, mask=written[:, None] & inside)


@triton.jit(do_not_specialize=["tokens"])
def _append(
    keys,
    values,
    slots,
    positions,
    tokens,
    key_stride,
    value_stride,
    k,
    v,
    k_scales,
    v_scales,
    k_center,
    k_equalizer,
    rotation_sign,
    k_scale,
    k_offset,
    v_scale,
    v_offset,
    beyond,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    KV_HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    MAPS: tl.constexpr,
    MAP_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    K_UNIT: tl.constexpr,
    V_BLOCK: tl.constexpr,
    V_UNIT: tl.constexpr,
):
    """Grid: blocks of ROWS tokens; heads of K, then of V."""
    task = tl.program_id(1)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(token, tokens - 1).to(tl.int64)
    slot = tl.load(slots + row)
    written = (token < tokens) & (slot >= 0)
    columns = tl.arange(0, WIDTH)[None, :]
    inside = columns < DIM
    if task < KV_HEADS:
        x = tl.load(keys + (row * key_stride + task * DIM)[:, None] + columns, mask=inside, other=0.0)
        append_keys(
            x,
            slot,
            written,
            positions + row,
            columns,
            task,
            k,
            k_scales,
            k_center,
            k_equalizer,
            rotation_sign,
            k_scale,
            k_offset,
            beyond,
            ROWS,
            WIDTH,
            DIM,
            KV_HEADS,
            KEYS,
            MAPS,
            MAP_BLOCK,
            K_BLOCK,
            K_UNIT,
        )
    else:
        head = task - KV_HEADS
        x = tl.load(values + (row * value_stride + head * DIM)[:, None] + columns, mask=inside, other=0.0)
        append_values(
            x,
            slot,
            written,
            columns,
            head,
            v,
            v_scales,
            v_scale,
            v_offset,
            beyond,
            ROWS,
            WIDTH,
            DIM,
            KV_HEADS,
            KEYS,
            V_BLOCK,
            V_UNIT,
        )


def cache_arguments(cache: Int8Cache, tables: SchemeTables) -> dict[str, Any]:
    """What a kernel that stores K and V takes, by name."""
    return {
        "k": cache.k,
        "v": cache.v,
        "k_scales": cache.k_scale,
        "v_scales": cache.v_scale,
        "k_center": tables.k_center,
        "k_equalizer": tables.k_equalizer,
        "rotation_sign": tables.rotation_sign,
        "k_scale": tables.k_scale,
        "k_offset": tables.k_offset,
        "v_scale": tables.v_scale,
        "v_offset": tables.v_offset,
        "WIDTH": width_of(tables.dim),
        "DIM": tables.dim,
        "KV_HEADS": tables.kv_heads,
        "KEYS": TILE,
        "MAPS": tables.maps,
        "MAP_BLOCK": tables.map_block,
        "K_BLOCK": tables.rotation_block,
        "K_UNIT": hadamard_factor(tables.rotation_block),
        "V_BLOCK": tables.v_rotation_block,
        "V_UNIT": hadamard_factor(tables.v_rotation_block),
    }


def append(
    k: Tensor, v: Tensor, slots: Tensor, positions: Tensor, cache: Int8Cache, tables: SchemeTables, beyond: Tensor
) -> None:
    """Store keys and values as quantizers.quantize_k and quantize_v round them.

    NaN in a row with a scale of its own makes the scale NaN.

    Args:
        k, v: float32 [tokens, Hkv, D], k after RoPE. Tokens may be any distance apart.
        slots: int64 [tokens]: page · page_size + offset. Nothing is stored for negative slots.
        positions: int32 [tokens], which select K's map.
        beyond: int64 [3] for q, k and v. The number of values beyond static scales is added.
    """
    k, v = heads_of(k), heads_of(v)
    tokens = len(k)
    if tokens == 0:
        return
    blocks = TokenBlocks.of(tokens, tables.dim)
    _append[(blocks.count, 2 * tables.kv_heads)](
        k,
        v,
        slots,
        positions,
        tokens,
        k.stride(0),
        v.stride(0),
        beyond=beyond,
        ROWS=blocks.rows,
        num_warps=blocks.warps,
        **cache_arguments(cache, tables),
        **ROUNDED,
    )
