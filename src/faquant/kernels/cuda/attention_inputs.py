"""From q, k and v to what attention reads: norms of heads, RoPE, K and V in the cache, queries mapped.

One kernel does all of it in one launch, because nothing between these steps has to be stored, and launches are a large
part of a short step. It can also do a part: only store K and V, or only map queries.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..scheme import TILE
from .append import append_keys, append_values
from .arithmetic import ROUNDED, hadamard_factor
from .cache import Int8Cache, MappedQueries, SchemeTables
from .queries import map_query_rows, maps_seen
from .rows import TokenBlocks, heads_of, rotated_by_position, width_of


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


@triton.jit
def _rows(begin, row, columns, cos, sin, norm, eps, ROWS: tl.constexpr, DIM: tl.constexpr):
    """Rows of q or k at the pointers begin [ROWS], after RoPE if `cos` is there."""
    if cos is not None:
        x = rotated_by_position(begin, row, columns, cos, sin, norm, eps, ROWS, DIM)
    else:
        x = tl.load(begin[:, None] + columns, mask=columns < DIM, other=0.0)
    return x


@triton.jit(do_not_specialize=["tokens", "maps", "window"])
def prepare(
    q,
    keys,
    values,
    q_stride,
    key_stride,
    value_stride,
    cos,
    sin,
    q_norm,
    k_norm,
    eps,
    slots,
    positions,
    tokens,
    maps,
    window,
    mapped,
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
    TILES_IN_PAGE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
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
    STORED: tl.constexpr,
):
    """Grid: blocks of ROWS tokens; heads of K and of V if they are STORED, and of q, if there is q, under each map."""
    task = tl.program_id(1)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(token, tokens - 1).to(tl.int64)
    columns = tl.arange(0, WIDTH)[None, :]
    FIRST_QUERY: tl.constexpr = 2 * KV_HEADS if STORED else 0
    if STORED:  # noqa: SIM102 (Triton decides this one when it compiles)
        if task < FIRST_QUERY:
            slot = tl.load(slots + row)
            written = (token < tokens) & (slot >= 0)
            if task < KV_HEADS:
                x = _rows(keys + row * key_stride + task * DIM, row, columns, cos, sin, k_norm, eps, ROWS, DIM)
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
                    TILES_IN_PAGE,
                    PAGE_STRIDE,
                    MAPS,
                    MAP_BLOCK,
                    K_BLOCK,
                    K_UNIT,
                )
            else:
                head = task - KV_HEADS
                begin = values + row * value_stride + head * DIM
                append_values(
                    tl.load(begin[:, None] + columns, mask=columns < DIM, other=0.0),
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
                    TILES_IN_PAGE,
                    PAGE_STRIDE,
                    V_BLOCK,
                    V_UNIT,
                )
    if q is not None:
        head, number = (task - FIRST_QUERY) % HEADS, (task - FIRST_QUERY) // HEADS
        first, last = maps_seen(tl.load(positions + row), window, maps, MAP_BLOCK)
        # Tasks that store have negative numbers, which are no maps.
        written = (task >= FIRST_QUERY) & (token < tokens) & (first <= number) & (number <= last)
        if tl.max(written.to(tl.int32), axis=0) > 0:
            map_query_rows(
                _rows(q + row * q_stride + head * DIM, row, columns, cos, sin, q_norm, eps, ROWS, DIM),
                token,
                tokens,
                written,
                written & (number == last),
                columns,
                head,
                number,
                mapped,
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
    heads = [tables.heads, tables.kv_heads, tables.kv_heads]
    q, k, v = qkv.view(len(qkv), sum(heads), tables.dim).split(heads, dim=1)
    out = _empty(len(q), tables, maps, q.device)
    _launch(q, (k, v, slots, cache), rotation, positions, tables, maps, window, beyond, out)
    return out


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
    _launch(None, (k, v, slots, cache), None, positions, tables, 0, None, beyond, None)


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
    out = _empty(len(q), tables, maps, q.device)
    _launch(q, None, None, positions, tables, maps, window, beyond, out)
    return out


def _empty(tokens: int, tables: SchemeTables, maps: int, device: torch.device) -> MappedQueries:
    shape = maps, tokens, tables.heads
    scale, bias = (torch.empty(shape, device=device) for _ in range(2))
    return MappedQueries(torch.empty(*shape, tables.dim, dtype=torch.int8, device=device), scale, bias)


def _launch(
    q: Tensor | None,
    stored: tuple[Tensor, Tensor, Tensor, Int8Cache] | None,
    rotation: Rotation | None,
    positions: Tensor,
    tables: SchemeTables,
    maps: int,
    window: int | None,
    beyond: Tensor,
    out: MappedQueries | None,
) -> None:
    """stored: k, v, their slots, and the cache."""
    k, v, slots, cache = stored or (None, None, None, None)
    q, k, v = (None if x is None else heads_of(x) for x in (q, k, v))
    tokens = len(positions)
    if not tokens:
        return
    blocks = TokenBlocks.of(tokens, tables.dim)
    tasks = (0 if k is None else 2 * tables.kv_heads) + (0 if q is None else tables.heads * maps)
    prepare[(blocks.count, tasks)](
        q,
        k,
        v,
        *(0 if x is None else x.stride(0) for x in (q, k, v)),
        *((None, None, None, None, 0.0) if rotation is None else _parts(rotation)),
        slots,
        positions,
        tokens,
        maps,
        window,
        *((None, None, None) if out is None else (out.values, out.scale, out.bias)),
        *((None, None, None, None) if cache is None else (cache.k, cache.v, cache.k_scale, cache.v_scale)),
        tables.k_center,
        tables.k_equalizer,
        tables.rotation_sign,
        tables.q_scale,
        tables.k_scale,
        tables.k_offset,
        tables.v_scale,
        tables.v_offset,
        beyond,
        ROWS=blocks.rows,
        WIDTH=width_of(tables.dim),
        DIM=tables.dim,
        HEADS=tables.heads,
        KV_HEADS=tables.kv_heads,
        KEYS=TILE,
        TILES_IN_PAGE=0 if cache is None else cache.tiles_in_page,
        PAGE_STRIDE=0 if cache is None else cache.page_stride,
        MAPS=tables.maps,
        MAP_BLOCK=tables.map_block,
        SHIFTED=maps > 1 and tables.k_center is not None,
        Q_BY_CHANNEL=tables.q_by_channel,
        K_BY_CHANNEL=tables.k_by_channel,
        K_BLOCK=tables.rotation_block,
        K_UNIT=hadamard_factor(tables.rotation_block),
        V_BLOCK=tables.v_rotation_block,
        V_UNIT=hadamard_factor(tables.v_rotation_block),
        SCORE_UNIT=tables.score_unit,
        STORED=k is not None,
        num_warps=blocks.warps,
        **ROUNDED,
    )


def _parts(rotation: Rotation) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, float]:
    return rotation.cos, rotation.sin, rotation.q_norm, rotation.k_norm, rotation.eps
