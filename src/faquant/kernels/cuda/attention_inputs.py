"""From the fused product of q, k and v to what attention reads, in one launch: norms of heads, RoPE, K and V in the
cache, queries mapped. Nothing between these steps is stored, and the part of a launch in a short step is large."""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from .append import append_keys, append_values, cache_arguments
from .arithmetic import ROUNDED
from .cache import Int8Cache, MappedQueries, SchemeTables
from .queries import empty_queries, map_query_rows, maps_seen, query_constants
from .rows import TokenBlocks, rotated_by_position


@dataclass(frozen=True)
class Rotation:
    """What happens to q and k before the scheme's maps.

    Attributes:
        cos, sin: float32 [tokens, D], the tables of RoPE.
        q_norm, k_norm: float32 [D], weights of an RMSNorm of each head before RoPE, or None for both.
        eps: of the norms.
    """

    cos: Tensor
    sin: Tensor
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    eps: float = 0.0


@triton.jit(do_not_specialize=["tokens", "maps", "window"])
def _attention_inputs(
    qkv,
    cos,
    sin,
    q_norm,
    k_norm,
    eps,
    slots,
    positions,
    tokens,
    token_stride,
    maps,
    window,
    values,
    scales,
    biases,
    k,
    v,
    k_scales,
    v_scales,
    k_center,
    k_equalizer,
    rotation_sign,
    q_scale,
    k_scale,
    k_offset,
    v_scale,
    v_offset,
    beyond,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    MAPS: tl.constexpr,
    MAP_BLOCK: tl.constexpr,
    SHIFTED: tl.constexpr,
    Q_BY_CHANNEL: tl.constexpr,
    K_BY_CHANNEL: tl.constexpr,
    K_BLOCK: tl.constexpr,
    K_UNIT: tl.constexpr,
    V_BLOCK: tl.constexpr,
    V_UNIT: tl.constexpr,
    SCORE_UNIT: tl.constexpr,
):
    """Grid: blocks of ROWS tokens; heads of K, of V, and of q under each map."""
    task = tl.program_id(1)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(token, tokens - 1).to(tl.int64)
    columns = tl.arange(0, WIDTH)[None, :]
    begin = qkv + row * token_stride
    if task < 2 * KV_HEADS:
        slot = tl.load(slots + row)
        written = (token < tokens) & (slot >= 0)
        begin += (HEADS + task) * DIM
        if task < KV_HEADS:
            x = rotated_by_position(begin, row, columns, cos, sin, k_norm, eps, ROWS, DIM)
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
            x = tl.load(begin[:, None] + columns, mask=columns < DIM, other=0.0)
            append_values(
                x,
                slot,
                written,
                columns,
                task - KV_HEADS,
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
    else:
        head, number = (task - 2 * KV_HEADS) % HEADS, (task - 2 * KV_HEADS) // HEADS
        first, last = maps_seen(tl.load(positions + row), window, maps, MAP_BLOCK)
        written = (token < tokens) & (first <= number) & (number <= last)
        if tl.max(written.to(tl.int32), axis=0) > 0:
            x = rotated_by_position(begin + head * DIM, row, columns, cos, sin, q_norm, eps, ROWS, DIM)
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
                K_BLOCK,
                K_UNIT,
                SCORE_UNIT,
            )


def attention_inputs(
    qkv: Tensor,
    rotation: Rotation,
    slots: Tensor,
    positions: Tensor,
    cache: Int8Cache,
    tables: SchemeTables,
    maps: int,
    beyond: Tensor,
    window: int | None = None,
) -> MappedQueries:
    """append and map_queries after RoPE of q and k, which is not stored.

    Args:
        qkv: float32 [tokens, (Hq + 2 · Hkv) · D]: the heads of q, of k and of v.
        Others: as append and map_queries take them.
    """
    tokens = len(qkv)
    out = empty_queries(tokens, tables, maps, qkv.device)
    if tokens == 0:
        return out
    blocks = TokenBlocks.of(tokens, tables.dim)
    _attention_inputs[(blocks.count, 2 * tables.kv_heads + tables.heads * maps)](
        qkv,
        rotation.cos,
        rotation.sin,
        rotation.q_norm,
        rotation.k_norm,
        rotation.eps,
        slots,
        positions,
        tokens,
        qkv.stride(0),
        maps,
        window,
        out.values,
        out.scale,
        out.bias,
        q_scale=tables.q_scale,
        beyond=beyond,
        ROWS=blocks.rows,
        num_warps=blocks.warps,
        **cache_arguments(cache, tables),
        **query_constants(tables, maps),
        **ROUNDED,
    )
    return out
