"""Rows of q under one of K's maps, as int8 with a scale and a bias of the scores."""

import triton
import triton.language as tl

from ..tables import INPUT_STEPS
from .arithmetic import scale_of, sum_of_columns
from .rows import absolute_peak, bytes_of, count_beyond, rotated, round_to_grid

_STEPS = tl.constexpr(INPUT_STEPS)


@triton.jit
def maps_seen(positions, window, maps, MAP_BLOCK: tl.constexpr):
    """The numbers of the first and the last map among the keys that the tokens at these positions see; at position -1
    none, with -1 as the last."""
    last = tl.where(positions < 0, -1, tl.minimum(positions // MAP_BLOCK, maps - 1))
    if window is not None:
        first = tl.minimum(tl.maximum(positions - window + 1, 0) // MAP_BLOCK, maps - 1)
    else:
        first = tl.zeros_like(last)
    return first, last


@triton.jit
def map_query_rows(
    x,
    token,
    tokens,
    written,
    counted,
    columns,
    head,
    number,
    values,
    scales,
    biases,
    k_center,
    k_equalizer,
    rotation_sign,
    q_scale,
    k_scale,
    beyond,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SHIFTED: tl.constexpr,
    Q_BY_CHANNEL: tl.constexpr,
    K_BY_CHANNEL: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    SCORE_UNIT: tl.constexpr,
):
    """Store rows x of one head of q, after RoPE, under map `number`. Rows where `counted` add to the count of values
    beyond a static scale."""
    inside = columns < DIM
    kv_head = head // (HEADS // KV_HEADS)
    of_head, of_kv_head = head * DIM + columns, kv_head * DIM + columns
    of_map = number * (KV_HEADS * DIM) + of_kv_head
    place = (number.to(tl.int64) * tokens + token) * HEADS + head
    bias = tl.zeros((ROWS,), tl.float32)
    if SHIFTED:
        center = tl.load(k_center + of_map, mask=inside, other=0.0)
        shift = center - tl.load(k_center + of_kv_head, mask=inside, other=0.0)
        bias = sum_of_columns(tl.trans(x * shift), WIDTH, ROWS) * SCORE_UNIT
    tl.store(biases + place, bias, mask=written)
    if k_equalizer is not None:
        x = x * tl.load(k_equalizer + of_map, mask=inside, other=0.0)
    x = rotated(x, columns, rotation_sign, ROWS, WIDTH, DIM, BLOCK, UNIT)
    counted = counted[:, None] & inside
    if Q_BY_CHANNEL:
        # An integer product cannot have a scale per channel of q: round to that grid, then quantize dynamically.
        grid = tl.load(q_scale + of_head, mask=inside, other=1.0)
        steps = tl.div_rn(x, grid.broadcast_to(x.shape))
        count_beyond(steps, counted, beyond)
        x = round_to_grid(steps) * grid
    if K_BY_CHANNEL:
        x = x * tl.load(k_scale + of_kv_head, mask=inside, other=0.0)
    if q_scale is not None and not Q_BY_CHANNEL:
        step = tl.load(q_scale + head * DIM) + tl.zeros((ROWS,), tl.float32)
        steps = tl.div_rn(x, step[:, None].broadcast_to(x.shape))
        count_beyond(steps, counted, beyond)
        x8 = bytes_of(steps, -128.0)
    else:
        step = scale_of(absolute_peak(x), _STEPS)
        x8 = bytes_of(tl.div_rn(x, step[:, None].broadcast_to(x.shape)), -127.0)
    if k_scale is not None and not K_BY_CHANNEL:
        step = step * tl.load(k_scale + kv_head * DIM)
    tl.store(scales + place, step * SCORE_UNIT, mask=written)
    tl.store(values + place[:, None] * DIM + columns, x8, mask=written[:, None] & inside)
