"""The oracle: int8 attention and linears in plain torch.

Integers are exact and floats are computed row by row in a fixed order, so the result of a row depends neither on its
neighbors nor on how a prompt was split into chunks. See README.md in this directory for the mathematics.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .quantizers import (
    SMALLEST_SCALE,
    hadamard,
    in_torch,
    int8_matmul,
    int16_matmul,
    per_query_head,
    quantize_q,
    quantize_rows,
    quantize_rows_asymmetric,
)
from .scheme import SPLIT, TILE, AttentionScheme
from .tables import ASYMMETRIC_INPUT_STEPS, INPUT_STEPS

# Block sizes that keep the data in the CPU cache; results do not depend on them.
_ROWS = 256
_BATCH = 2**18

_LOG2E = math.log2(math.e)
# 2^f on [-1/2, 1/2] with the least maximum relative error, 1.9e-7, and exactly 1 at f = 0.
_EXP2 = (0.001326472731307149, 0.009671512991189957, 0.05550733581185341, 0.24022242426872253, 0.6931470036506653, 1.0)


def exp2(x: Tensor) -> Tensor:
    """2^x for x ≤ 0, float32; below 2^-126.5 exactly 0.

    torch.exp2 rounds differently in the tail of a vector, so its bits depend on the neighbors. This function takes
    eleven roundings in a fixed order, without fused operations: n = rint(x), f = x - n, Horner, · 2^n.
    """
    x = x.clamp_min(-127.0)
    n = x.round()
    f = x.sub_(n)
    p = f * _EXP2[0]
    for coefficient in _EXP2[1:-1]:
        p.add_(coefficient).mul_(f)
    p.add_(_EXP2[-1])
    # The bits of 2^n, or of 0 for n = -127.
    power = n.add_(127.0).mul_(2.0**23).to(torch.int32).view(torch.float32)
    return p.mul_(power)


def attend(
    q: Tensor,
    k8: Tensor,
    v8: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    scheme: AttentionScheme,
    start: int,
    window: int | None = None,
) -> Tensor:
    """Causal int8 attention of the queries at `start`, `start` + 1, … over all keys up to their own.

    Args:
        q: float32 [tokens, Hq, D], after RoPE, finite, with |q·k| below float32's range.
        k8, v8: int8 [length, Hkv, D] with length ≥ start + tokens; later keys are ignored.
        k_scale, v_scale: float16 [length, Hkv], or None if the scheme's scales are static.
        window: each query sees this many keys, including its own; None: all. Keys that no query sees may hold any
            bytes.

    Returns:
        float32 [tokens, Hq, D].
    """
    scheme = in_torch(scheme)
    maps = min(scheme.num_maps, -(-(start + q.shape[0]) // scheme.map_block))
    queries = map_queries(q, scheme, maps)
    out = attend_int8(queries, k8, v8, k_scale, v_scale, scheme, start, window)
    return hadamard(out, scheme.v_rotation_block) if scheme.v_rotation_block else out


class MappedQueries(NamedTuple):
    """q transformed for each map of K: int8 [maps, tokens, Hq, D], with scales and the bias of the scores under each
    map, both float32 [maps, tokens, Hq] in log2 units."""

    values: Tensor
    scale: Tensor
    bias: Tensor

    def rows(self, kv_heads: int, some: slice) -> "MappedQueries":
        """A range of tokens as [maps, Hkv, tokens · group, …], with the values in float32."""

        def by_kv_head(x: Tensor) -> Tensor:
            x = x[:, some]
            return x.reshape(*x.shape[:2], kv_heads, -1, *x.shape[3:]).transpose(1, 2).flatten(2, 3)

        return MappedQueries(by_kv_head(self.values).float(), by_kv_head(self.scale), by_kv_head(self.bias))


def map_queries(q: Tensor, scheme: AttentionScheme, maps: int) -> MappedQueries:
    """Transform q [tokens, Hq, D] after RoPE for the first `maps` maps of K.

    A center that all keys share cancels in the softmax, but differences between the maps' centers do not. The bias is
    q·(c - c₀), so that it is 0 for the first map.
    """
    scheme = in_torch(scheme)
    unit = _LOG2E / math.sqrt(scheme.head_dim)
    schemes = [scheme.at(number) for number in range(maps)]
    values, scales = zip(*(quantize_q(q, here) for here in schemes), strict=True)
    biases = [torch.zeros_like(scales[0])] * maps
    if maps > 1 and scheme.k_center is not None:
        shifts = scheme.k_center[:maps] - scheme.k_center[0]
        biases = [_tree_sum(_padded(q * per_query_head(shift, scheme))) for shift in shifts]
    return MappedQueries(torch.stack(values), torch.stack(scales) * unit, torch.stack(biases) * unit)


def attend_int8(
    queries: MappedQueries,
    k8: Tensor,
    v8: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    scheme: AttentionScheme,
    start: int,
    window: int | None,
) -> Tensor:
    """As `attend`, for mapped queries, without rotating V back."""
    scheme = in_torch(scheme)
    k8, v8 = torch.as_tensor(k8), torch.as_tensor(v8)
    k_scale, v_scale = (None if scale is None else torch.as_tensor(scale) for scale in (k_scale, v_scale))
    _, tokens, heads, dim = queries.values.shape
    kv_heads = scheme.num_kv_heads
    end = start + tokens
    oldest = 0 if window is None else max(0, start - window + 1)
    cache = _Cache(
        _tiles(k8, end), _tiles(v8, end), _token_scales(k_scale, oldest, end), _token_scales(v_scale, oldest, end)
    )
    out = torch.empty(kv_heads, tokens, heads // kv_heads, dim)
    for row in range(0, tokens, _ROWS):
        some = slice(row, row + _ROWS)
        rows = queries.rows(kv_heads, some)
        out[:, some] = _attend_rows(rows, cache, scheme, start + row, window).view_as(out[:, some])
    return out.transpose(0, 1).reshape(tokens, heads, dim)


class _Cache(NamedTuple):
    """Keys and values of one sequence in whole tiles: int8 [Hkv, tiles, TILE, D], scales float32 [Hkv, tiles, TILE]."""

    k: Tensor
    v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None

    def tiles(self, some: slice) -> "_Cache":
        k_scale, v_scale = (None if scale is None else scale[:, some] for scale in (self.k_scale, self.v_scale))
        return _Cache(self.k[:, some], self.v[:, some], k_scale, v_scale)


class _Partial(NamedTuple):
    """Softmax over a part of the keys: log2-domain maximum and sum [Hkv, rows], and output [Hkv, rows, D]."""

    max: Tensor
    sum: Tensor
    out: Tensor

    @classmethod
    def empty(cls, kv_heads: int, rows: int, dim: int) -> "_Partial":
        return cls(
            torch.full((kv_heads, rows), -math.inf), torch.zeros(kv_heads, rows), torch.zeros(kv_heads, rows, dim)
        )

    def merge(self, tiles: "_Partial") -> None:
        """Merge tiles, [Hkv, tiles, rows, …], one after another. A tile in which a row sees no key leaves its bits
        unchanged."""
        tops = torch.cat((self.max[:, None], tiles.max), dim=1).cummax(dim=1).values
        old, new = tops[:, :-1], tops[:, 1:]
        finite = new.masked_fill(new == -math.inf, 0.0)
        a, b = exp2(old - finite), exp2(tiles.max - finite)
        out, total = tiles.out * b[..., None], tiles.sum * b
        for i in range(b.shape[1]):
            self.out.mul_(a[:, i, :, None]).add_(out[:, i])
            self.sum.mul_(a[:, i]).add_(total[:, i])
        self.max.copy_(tops[:, -1])


def _attend_rows(
    queries: MappedQueries, cache: _Cache, scheme: AttentionScheme, start: int, window: int | None
) -> Tensor:
    """attend_int8 [Hkv, rows, D] for rows as returned by MappedQueries.rows; the first is at position `start`."""
    maps, kv_heads, rows, dim = queries.values.shape
    group = scheme.num_heads // kv_heads
    end = start + rows // group
    oldest = 0 if window is None else max(0, start - window + 1)
    step, size = TILE * max(1, _BATCH // (kv_heads * rows * TILE)), scheme.map_block
    total = _Partial.empty(kv_heads, rows, dim)
    for split in range(oldest // SPLIT * SPLIT, end, SPLIT):
        partial = _Partial.empty(kv_heads, rows, dim)
        split_end = min(split + SPLIT, end)
        for block in range(max(split, oldest // size * size), split_end, size):
            stop = min(block + size, split_end)
            q8, scale, bias = (x[min(block // size, maps - 1)] for x in queries)
            for first in range(max(block, oldest // TILE * TILE), stop, step):
                some = cache.tiles(slice(first // TILE, -(-min(first + step, stop) // TILE)))
                # float32 sums of up to 1,024 products of two bytes are exact, in any order.
                scores = q8[:, None] @ some.k.transpose(2, 3).float()
                scores *= scale[:, None, :, None]
                if some.k_scale is not None:
                    scores *= some.k_scale[:, :, None]
                scores += bias[:, None, :, None]
                _mask(scores, first, start, group, window)
                partial.merge(_softmax_tiles(scores, some, scheme))
        total.merge(_Partial(*(part[:, None] for part in partial)))
    return total.out / total.sum[..., None]


def _mask(scores: Tensor, first: int, start: int, group: int, window: int | None) -> None:
    """Set scores [Hkv, tiles, rows, TILE] to -∞, in place, for keys (from `first` on) that a query does not see."""
    kv_heads, tiles, rows, _ = scores.shape
    last_row = start + rows // group - 1
    if first + tiles * TILE - 1 <= start and (window is None or first > last_row - window):
        return
    keys = torch.arange(first, first + tiles * TILE).view(tiles, 1, 1, TILE)
    positions = torch.arange(start, last_row + 1).view(-1, 1, 1)
    hidden = keys > positions
    if window is not None:
        hidden |= keys <= positions - window
    scores.view(kv_heads, tiles, -1, group, TILE).masked_fill_(hidden, -math.inf)


def _softmax_tiles(scores: Tensor, cache: _Cache, scheme: AttentionScheme) -> _Partial:
    """The partial softmax of each tile, from scores [Hkv, tiles, rows, TILE], which are overwritten."""
    top = scores.amax(-1)
    p = exp2(scores.sub_(top.masked_fill(top == -math.inf, 0.0)[..., None]))
    levels = scheme.p_levels
    if cache.v_scale is not None:
        p_int = p * cache.v_scale[:, :, None]
        peak = p_int.amax(-1, keepdim=True).clamp_min(SMALLEST_SCALE)
        # torch rounds twice in `levels / peak` if levels is a Python number.
        p_int = _round_p(p_int * (torch.tensor(float(levels)) / peak), scheme)
        out = _weighted_sum(p_int, cache.v) * (peak / levels)
        return _Partial(top, _tree_sum(p), out)
    p_int = _round_p(p * levels, scheme)
    # At most 128 · 32,767: exact, in any order.
    p_int_sum = p_int.sum(-1)
    out = _weighted_sum(p_int, cache.v)
    if scheme.v_offset is not None:
        out -= p_int_sum[..., None] * scheme.v_offset[:, None, None, :]
    out *= 1.0 / levels
    if scheme.v_scale is not None:
        out *= scheme.v_scale[:, None, None, :]
    return _Partial(top, p_int_sum / levels if scheme.quantized_sum else _tree_sum(p), out)


def _round_p(p: Tensor, scheme: AttentionScheme) -> Tensor:
    return (p.half().float() if scheme.p_float16 else p).round_()


def _weighted_sum(p_int: Tensor, v8: Tensor) -> Tensor:
    """The int32 sum ∑ P·V of each tile, rounded once to float32. float64 holds it exactly."""
    return (p_int.double() @ v8.double()).float()


def _padded(x: Tensor) -> Tensor:
    """Pad the last dimension with zeros to a power of two."""
    return torch.nn.functional.pad(x, (0, (1 << (x.shape[-1] - 1).bit_length()) - x.shape[-1]))


def _tree_sum(p: Tensor) -> Tensor:
    """Sum over the last dimension, a power of two, by halves: in the same order on every machine."""
    width = p.shape[-1]
    while width > 1:
        width //= 2
        p = p[..., :width] + p[..., width:]
    return p[..., 0]


def _tiles(x: Tensor, end: int) -> Tensor:
    """The first `end` rows of [length, Hkv, …] as [Hkv, tiles, TILE, …], padded with zeros."""
    tiles = -(-end // TILE)
    whole = torch.zeros(tiles * TILE, *x.shape[1:], dtype=x.dtype)
    whole[:end] = x[:end]
    return whole.view(tiles, TILE, *x.shape[1:]).movedim(2, 0)


def _token_scales(scale: Tensor | None, oldest: int, end: int) -> Tensor | None:
    if scale is None:
        return None
    # Memory before the oldest visible key may be freed and hold NaN, and NaN · 0 is NaN.
    clean = scale[:end].float()
    clean[:oldest] = 0.0
    return _tiles(clean, end)


def dynamic_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    hadamard_block: int = 0,
    input_multiplier: Tensor | None = None,
    input_steps: float = INPUT_STEPS,
) -> Tensor:
    """Apply int8 weight [n, k] with scales [n] to x [tokens, k], each row of which is quantized with its own scale, its
    greatest value divided by `input_steps`, to 8 bits, or to 16 with 32,639 steps; with 255 steps, with a zero point,
    too. x is multiplied by input_multiplier [k] first."""
    if input_multiplier is not None:
        x = x * input_multiplier
    if hadamard_block:
        x = hadamard(x, hadamard_block)
    if input_steps == ASYMMETRIC_INPUT_STEPS:
        integers, x_scale, zero = quantize_rows_asymmetric(x)
        integers = integers.to(torch.int16) - zero[:, None]
    else:
        integers, x_scale = quantize_rows(x, input_steps)
    matmul = int16_matmul if integers.dtype == torch.int16 else int8_matmul
    y = matmul(integers, weight).float() * scale * x_scale[:, None]
    return y if bias is None else y + bias


def static_linear(
    x: Tensor,
    weight: Tensor,
    input_scale: Tensor,
    input_offset: Tensor,
    quant_bias: Tensor,
    deq_scale: Tensor,
    input_multiplier: Tensor | None = None,
) -> Tensor:
    """Apply int8 weight [n, k] to x [tokens, k], which is quantized with a given scale and zero point [1].
    x is multiplied by input_multiplier [k] first."""
    if input_multiplier is not None:
        x = x * input_multiplier
    x8 = ((x / input_scale).round() + input_offset).clamp(-128, 127).to(torch.int8)
    return (int8_matmul(x8, weight) + quant_bias).float() * deq_scale
