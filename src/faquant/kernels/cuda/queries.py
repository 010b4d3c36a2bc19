"""Maps queries: q under each of K's maps that a token sees, as int8 with a scale and a bias of the scores."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tables import INPUT_STEPS
from .arithmetic import ROUNDED, hadamard_factor, scale_of, sum_of_columns
from .cache import MappedQueries, SchemeTables
from .rows import (
    TokenBlocks,
    absolute_peak,
    bytes_of,
    count_beyond,
    heads_of,
    rotated,
    round_to_grid,
    width_of,
)

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


@triton.jit(do_not_specialize=["tokens", "maps", "window"])
def _map_queries(
    q,
    positions,
    tokens,
    token_stride,
    maps,
    window,
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
    MAP_BLOCK: tl.constexpr,
    SHIFTED: tl.constexpr,
    Q_BY_CHANNEL: tl.constexpr,
    K_BY_CHANNEL: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    SCORE_UNIT: tl.constexpr,
):
    """Grid: blocks of ROWS tokens; heads; maps."""
    head, number = tl.program_id(1), tl.program_id(2)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(token, tokens - 1).to(tl.int64)
    first, last = maps_seen(tl.load(positions + row), window, maps, MAP_BLOCK)
    written = (token < tokens) & (first <= number) & (number <= last)
    if tl.max(written.to(tl.int32), axis=0) > 0:
        columns = tl.arange(0, WIDTH)[None, :]
        at = (row * token_stride + head * DIM)[:, None] + columns
        x = tl.load(q + at, mask=columns < DIM, other=0.0)
        map_query_rows(
            x,
            token,
            tokens,
            written,
            written & (number == last),
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
            ROWS,
            WIDTH,
            DIM,
            HEADS,
            KV_HEADS,
            SHIFTED,
            Q_BY_CHANNEL,
            K_BY_CHANNEL,
            BLOCK,
            UNIT,
            SCORE_UNIT,
        )


def query_constants(tables: SchemeTables, maps: int) -> dict[str, Any]:
    """What decides on the code of a kernel that maps queries, by name."""
    return {
        "HEADS": tables.heads,
        "SHIFTED": maps > 1 and tables.k_center is not None,
        "Q_BY_CHANNEL": tables.q_by_channel,
        "K_BY_CHANNEL": tables.k_by_channel,
        "SCORE_UNIT": tables.score_unit,
    }


def empty_queries(tokens: int, tables: SchemeTables, maps: int, device: torch.device) -> MappedQueries:
    """Memory for queries under this many maps."""
    shape = maps, tokens, tables.heads
    scale, bias = (torch.empty(shape, device=device) for _ in range(2))
    return MappedQueries(torch.empty(*shape, tables.dim, dtype=torch.int8, device=device), scale, bias)


def map_queries(
    q: Tensor,
    positions: Tensor,
    tables: SchemeTables,
    maps: int,
    beyond: Tensor,
    window: int | None = None,
) -> MappedQueries:
    """reference.map_queries for each token and each map that it sees; what it does not see is not written.

    Args:
        q: float32 [tokens, Hq, D] after RoPE. Tokens may be any distance apart.
        positions: int32 [tokens].
        maps: at most tables.maps, and enough for the greatest position.
        beyond: int64 [3] for q, k and v. The number of values of q beyond static scales is added, each counted once,
            under the token's own map.
        window: if each query sees only this many keys, including its own.
    """
    q = heads_of(q)
    tokens = len(q)
    out = empty_queries(tokens, tables, maps, q.device)
    if tokens == 0:
        return out
    blocks = TokenBlocks.of(tokens, tables.dim)
    _map_queries[(blocks.count, tables.heads, maps)](
        q,
        positions,
        tokens,
        q.stride(0),
        maps,
        window,
        out.values,
        out.scale,
        out.bias,
        tables.k_center,
        tables.k_equalizer,
        tables.rotation_sign,
        tables.q_scale,
        tables.k_scale,
        beyond,
        ROWS=blocks.rows,
        WIDTH=width_of(tables.dim),
        DIM=tables.dim,
        KV_HEADS=tables.kv_heads,
        MAP_BLOCK=tables.map_block,
        BLOCK=tables.rotation_block,
        UNIT=hadamard_factor(tables.rotation_block),
        num_warps=blocks.warps,
        **query_constants(tables, maps),
        **ROUNDED,
    )
    return out
