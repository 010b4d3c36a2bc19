"""The oracle: quantizers, Hadamard transform and int8 attention in plain torch.

Integers are exact and floats are computed row by row in a fixed order, so a row's result depends neither on
its neighbours nor on how a prompt was cut into chunks. README.md beside this file has the mathematics.
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .saturation import Saturation
from .scheme import MAP_BLOCK, AttentionScheme

TILE = 128
"""Keys that share one scale of P. Tiles start at multiples of it."""

SPLIT = 2048
"""Keys whose tiles are merged in one run; runs merge in ascending order. A constant of the arithmetic, and a multiple
of MAP_BLOCK."""

# How much is computed at a time, so that it stays in the processor's cache; no result depends on it.
_ROWS = 256
_BATCH = 2**18

MAX_INPUT_BLOCK = 512
"""The largest Hadamard block on a linear's input, so that it divides a rank's share under tensor parallelism."""

_LOG2E = math.log2(math.e)
_MIN_SCALE = 2.0**-24
"""The smallest positive float16, so that no stored scale is zero."""


# 2^f on [-1/2, 1/2] by least relative error, 1.9e-7, with 1 at f = 0 exactly.
_EXP2 = (0.001326472731307149, 0.009671512991189957, 0.05550733581185341, 0.24022242426872253, 0.6931470036506653, 1.0)


def exp2(x: Tensor) -> Tensor:
    """2^x for x ≤ 0, float32; below 2^-126.5 exactly 0.

    torch.exp2 has other bits in a vector's tail than in its body, so they would depend on the neighbours. This
    is eleven roundings in a fixed order, without fused operations: n = rint(x), f = x - n, Horner, · 2^n.
    """
    x = x.clamp_min(-127.0)
    n = x.round()
    f = x.sub_(n)
    p = f * _EXP2[0]
    for coefficient in _EXP2[1:-1]:
        p.add_(coefficient).mul_(f)
    p.add_(_EXP2[-1])
    # The bits of 2^n; of 0 for n = -127.
    power = n.add_(127.0).mul_(2.0**23).to(torch.int32).view(torch.float32)
    return p.mul_(power)


def hadamard_block(size: int, limit: int = 1 << 30) -> int:
    """The largest power of two that divides `size` and is at most `limit`: the block that `size` channels get."""
    return min(size & -size, 1 << (limit.bit_length() - 1))


def hadamard(x: Tensor, block: int) -> Tensor:
    """Orthonormal Walsh-Hadamard transform of each `block` consecutive elements of the last dimension.

    `block` is a power of two that divides the last dimension. The transform is its own inverse.
    Butterflies instead of a matrix product: their rounding does not depend on the number of rows.
    """
    shape = x.shape
    half = 1
    while half < block:
        pairs = x.reshape(-1, shape[-1] // (2 * half), 2, half)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        x = torch.empty_like(pairs)
        torch.add(a, b, out=x[:, :, 0])
        torch.sub(a, b, out=x[:, :, 1])
        half *= 2
    return x.reshape(shape) * (1.0 / math.sqrt(block))


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 with one scale for each row of the last dimension: x ≈ int8 · scale.

    Returns int8 [..., n] in [-127, 127] and float32 scales [...].
    """
    scale = x.abs().amax(-1).clamp_min(1e-30) / 127.0
    return (x / scale[..., None]).round_().clamp_(-127, 127).to(torch.int8), scale


def quantize_rows_fp16(x: Tensor) -> tuple[Tensor, Tensor]:
    """As quantize_rows, with float16 scales rounded up, so that no value leaves the range."""
    exact = (x.abs().amax(-1) / 127.0).clamp(_MIN_SCALE, 65504.0)
    scale = exact.half()
    bits = scale.view(torch.int16)
    scale = torch.where(scale.float() < exact, (bits + 1).view(torch.float16), scale)
    return (x / scale.float()[..., None]).round_().clamp_(-127, 127).to(torch.int8), scale


def int8_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Exact integer product x · weightᵀ: int8 [m, k] and int8 [n, k] give int32 [m, n]."""
    # A float32 holds sums of 1,024 products of two bytes exactly: 1024 · 128 · 128 = 2^24.
    total = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.int32)
    for k in range(0, x.shape[1], 1024):
        total += (x[:, k : k + 1024].float() @ weight[:, k : k + 1024].float().T).to(torch.int32)
    return total


def map_k(k: Tensor, scheme: AttentionScheme) -> Tensor:
    """K's map before quantization: Hᵀ((k - c) ⊘ e), on [tokens, Hkv, D] after RoPE."""
    if scheme.k_center is not None:
        k = k - scheme.k_center
    if scheme.k_equalizer is not None:
        k = k / scheme.k_equalizer
    return _rotate(k, scheme)


def unmap_k(k: Tensor, scheme: AttentionScheme) -> Tensor:
    """The inverse of map_k."""
    if scheme.rotation_block:
        k = hadamard(k, scheme.rotation_block)
        if scheme.rotation_sign is not None:
            k = k * scheme.rotation_sign
    if scheme.k_equalizer is not None:
        k = k * scheme.k_equalizer
    if scheme.k_center is not None:
        k = k + scheme.k_center
    return k


def map_q(q: Tensor, scheme: AttentionScheme, saturation: Saturation | None = None) -> Tensor:
    """The inverse transpose of K's map (without the centre, which softmax cancels), on [tokens, Hq, D].

    A per-channel scale of K is folded in as well, so that q'·k8 needs no scale per channel.
    """
    if scheme.k_equalizer is not None:
        q = q * _per_query_head(scheme.k_equalizer, scheme)
    q = _rotate(q, scheme)
    if scheme.q_scale is not None and scheme.q_scale.shape[-1] > 1:
        # A scale per channel of q has no place in an integer product: round to its grid, then as a dynamic q.
        q = _quantize_static("q", q, scheme.q_scale, None, saturation) * scheme.q_scale
    if scheme.k_scale is not None and scheme.k_scale.shape[-1] > 1:
        q = q * _per_query_head(scheme.k_scale, scheme)
    return q


def unmap_q(q: Tensor, scheme: AttentionScheme) -> Tensor:
    """The inverse of map_q, but for its rounding."""
    if scheme.k_scale is not None and scheme.k_scale.shape[-1] > 1:
        q = q / _per_query_head(scheme.k_scale, scheme)
    if scheme.rotation_block:
        q = hadamard(q, scheme.rotation_block)
        if scheme.rotation_sign is not None:
            q = q * scheme.rotation_sign
    if scheme.k_equalizer is not None:
        q = q / _per_query_head(scheme.k_equalizer, scheme)
    return q


def dequantize_q(q8: Tensor, scale: Tensor, scheme: AttentionScheme) -> Tensor:
    """What quantize_q rounded, as map_q gave it: float32 [tokens, Hq, D]."""
    if scheme.k_scale is not None and scheme.k_scale.shape[-1] == 1:
        scale = scale / _per_query_head(scheme.k_scale, scheme)[:, 0]
    return q8.float() * scale[..., None]


def quantize_q(q: Tensor, scheme: AttentionScheme, saturation: Saturation | None = None) -> tuple[Tensor, Tensor]:
    """q [tokens, Hq, D] after RoPE to int8 and a float32 scale [tokens, Hq] that holds K's static scale per head.

    As in quantize_k and quantize_v, what is beyond a calibrated scale is counted in `saturation`.
    """
    q = map_q(q, scheme, saturation)
    if scheme.q_scale is not None and scheme.q_scale.shape[-1] == 1:
        q8 = _quantize_static("q", q, scheme.q_scale, None, saturation)
        scale = scheme.q_scale[:, 0].expand(q.shape[0], -1)
    else:
        q8, scale = quantize_rows(q)
    if scheme.k_scale is not None and scheme.k_scale.shape[-1] == 1:
        scale = scale * _per_query_head(scheme.k_scale, scheme)[:, 0]
    return q8, scale


def quantize_k(
    k: Tensor, scheme: AttentionScheme, saturation: Saturation | None = None
) -> tuple[Tensor, Tensor | None]:
    """K [tokens, Hkv, D] after RoPE to int8, with float16 scales [tokens, Hkv] where they are per token."""
    mapped = map_k(k, scheme)
    if scheme.k_scale is None:
        return quantize_rows_fp16(mapped)
    return _quantize_static("k", mapped, scheme.k_scale, scheme.k_offset, saturation), None


def quantize_v(
    v: Tensor, scheme: AttentionScheme, saturation: Saturation | None = None
) -> tuple[Tensor, Tensor | None]:
    """V [tokens, Hkv, D] to int8, with float16 scales [tokens, Hkv] where they are per token."""
    if scheme.v_rotation_block:
        v = hadamard(v, scheme.v_rotation_block)
    if scheme.v_scale is None:
        return quantize_rows_fp16(v)
    return _quantize_static("v", v, scheme.v_scale, scheme.v_offset, saturation), None


def dequantize_k(k8: Tensor, scale: Tensor | None, scheme: AttentionScheme) -> Tensor:
    """K [tokens, Hkv, D] float32 in its own basis, as the attention sees it."""
    return unmap_k(_dequantize(k8, scale, scheme.k_scale, scheme.k_offset), scheme)


def dequantize_v(v8: Tensor, scale: Tensor | None, scheme: AttentionScheme) -> Tensor:
    """V [tokens, Hkv, D] float32, as the attention sees it."""
    v = _dequantize(v8, scale, scheme.v_scale, scheme.v_offset)
    return hadamard(v, scheme.v_rotation_block) if scheme.v_rotation_block else v


def attend(
    q: Tensor,
    k8: Tensor,
    v8: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    scheme: AttentionScheme,
    start: int,
    window: int | None = None,
    kernel: "Kernel | None" = None,
    saturation: Saturation | None = None,
) -> Tensor:
    """Causal int8 attention of the queries at `start`, `start` + 1, … over all keys up to their own.

    Args:
        q: float32 [tokens, Hq, D], after RoPE, finite, with |q·k| below float32's range.
        k8, v8: int8 [length, Hkv, D] with length ≥ start + tokens; later keys are not seen.
        k_scale, v_scale: float16 [length, Hkv], or None where the scheme's scales are static.
        window: a query sees this many keys, itself included; None: all. What no query sees may hold anything.
        kernel: what computes the integers' attention; None: attend_int8.
        saturation: counts the values of q beyond a calibrated scale.

    Returns:
        float32 [tokens, Hq, D].
    """
    maps = min(scheme.num_maps, -(-(start + q.shape[0]) // MAP_BLOCK))
    queries = map_queries(q, scheme, maps, saturation)
    out = (kernel or attend_int8)(queries, k8, v8, k_scale, v_scale, scheme, start, window)
    return hadamard(out, scheme.v_rotation_block) if scheme.v_rotation_block else out


class Kernel(Protocol):
    """attend_int8, or what gives the same bits."""

    def __call__(
        self,
        queries: "MappedQueries",
        k8: Tensor,
        v8: Tensor,
        k_scale: Tensor | None,
        v_scale: Tensor | None,
        scheme: AttentionScheme,
        start: int,
        window: int | None,
        /,
    ) -> Tensor: ...


class MappedQueries(NamedTuple):
    """q as each map of K wants it: int8 [maps, tokens, Hq, D], with scales and what is added to every score under that
    map, both float32 [maps, tokens, Hq] in log2 units."""

    values: Tensor
    scale: Tensor
    bias: Tensor

    def rows(self, kv_heads: int, some: slice) -> "MappedQueries":
        """Some of the tokens, as [maps, Hkv, tokens · group, …], the values in float32."""

        def by_kv_head(x: Tensor) -> Tensor:
            x = x[:, some]
            return x.reshape(*x.shape[:2], kv_heads, -1, *x.shape[3:]).transpose(1, 2).flatten(2, 3)

        return MappedQueries(by_kv_head(self.values).float(), by_kv_head(self.scale), by_kv_head(self.bias))


def map_queries(q: Tensor, scheme: AttentionScheme, maps: int, saturation: Saturation | None = None) -> MappedQueries:
    """q [tokens, Hq, D] after RoPE as the first `maps` maps of K want it.

    A centre is the same for all keys of a map, and so cancels in the softmax; that the centres differ does not. What
    is added is q·(c - c₀), so that the first map's keys need nothing.
    """
    unit = _LOG2E / math.sqrt(scheme.head_dim)
    schemes = [scheme.at(number) for number in range(maps)]
    values, scales = zip(*(quantize_q(q, here, saturation) for here in schemes), strict=True)
    biases = [torch.zeros_like(scales[0])] * maps
    if maps > 1 and scheme.k_center is not None:
        shifts = scheme.k_center[:maps] - scheme.k_center[0]
        biases = [_tree_sum(_padded(q * _per_query_head(shift, scheme))) for shift in shifts]
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
    """attend for mapped queries, before V's rotation back."""
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
    """One sequence's keys and values in whole tiles: int8 [Hkv, tiles, TILE, D], scales float32 [Hkv, tiles, TILE]."""

    k: Tensor
    v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None

    def tiles(self, some: slice) -> "_Cache":
        k_scale, v_scale = (None if scale is None else scale[:, some] for scale in (self.k_scale, self.v_scale))
        return _Cache(self.k[:, some], self.v[:, some], k_scale, v_scale)


class _Partial(NamedTuple):
    """Softmax over some of the keys: log2-domain maximum and sum [Hkv, rows], and output [Hkv, rows, D]."""

    max: Tensor
    sum: Tensor
    out: Tensor

    @classmethod
    def empty(cls, kv_heads: int, rows: int, dim: int) -> "_Partial":
        return cls(
            torch.full((kv_heads, rows), -math.inf), torch.zeros(kv_heads, rows), torch.zeros(kv_heads, rows, dim)
        )

    def merge(self, tiles: "_Partial") -> None:
        """Add tiles, [Hkv, tiles, rows, …], one after the other. A row that sees no key of one keeps its bits."""
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
    """attend_int8 [Hkv, rows, D] for rows as MappedQueries.rows gives them, of which the first stands at `start`."""
    maps, kv_heads, rows, dim = queries.values.shape
    group = scheme.num_heads // kv_heads
    end = start + rows // group
    oldest = 0 if window is None else max(0, start - window + 1)
    step = TILE * max(1, _BATCH // (kv_heads * rows * TILE))
    total = _Partial.empty(kv_heads, rows, dim)
    for split in range(oldest // SPLIT * SPLIT, end, SPLIT):
        partial = _Partial.empty(kv_heads, rows, dim)
        for block in range(max(split, oldest // MAP_BLOCK * MAP_BLOCK), min(split + SPLIT, end), MAP_BLOCK):
            stop = min(block + MAP_BLOCK, end)
            q8, scale, bias = (x[min(block // MAP_BLOCK, maps - 1)] for x in queries)
            for first in range(max(block, oldest // TILE * TILE), stop, step):
                some = cache.tiles(slice(first // TILE, -(-min(first + step, stop) // TILE)))
                # Float32 sums of up to 1,024 products of two bytes are exact, in any order.
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
    """Set the scores [Hkv, tiles, rows, TILE] of keys from `first` on that a query does not see to -∞, in place."""
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
    """Each tile's part of the softmax, from scores [Hkv, tiles, rows, TILE], which are overwritten."""
    top = scores.amax(-1)
    p = exp2(scores.sub_(top.masked_fill(top == -math.inf, 0.0)[..., None]))
    levels = scheme.p_levels
    if cache.v_scale is not None:
        p_int = p * cache.v_scale[:, :, None]
        peak = p_int.amax(-1, keepdim=True).clamp_min(_MIN_SCALE)
        # `levels / peak` with a Python number is two roundings in torch.
        p_int = _round_p(p_int * (torch.tensor(float(levels)) / peak), levels)
        out = _weighted_sum(p_int, cache.v) * (peak / levels)
        return _Partial(top, _tree_sum(p), out)
    p_int = _round_p(p * levels, levels)
    # At most 128 · 32,767: exact, in any order.
    p_int_sum = p_int.sum(-1)
    out = _weighted_sum(p_int, cache.v)
    if scheme.v_offset is not None:
        out -= p_int_sum[..., None] * scheme.v_offset[:, None, None, :]
    out *= 1.0 / levels
    if scheme.v_scale is not None:
        out *= scheme.v_scale[:, None, None, :]
    return _Partial(top, p_int_sum / levels if scheme.quantized_sum else _tree_sum(p), out)


def _round_p(p: Tensor, levels: int) -> Tensor:
    # The ecosystem's kernel rounds through float16; one step of P is at stake, near a half.
    return (p.half().float() if levels == 127 else p).round_()


def _weighted_sum(p_int: Tensor, v8: Tensor) -> Tensor:
    """The int32 sum ∑ P·V of each tile, rounded once to float32. float64 holds it exactly."""
    return (p_int.double() @ v8.double()).float()


def _padded(x: Tensor) -> Tensor:
    """The last dimension filled up with zeros to a power of two."""
    return torch.nn.functional.pad(x, (0, (1 << (x.shape[-1] - 1).bit_length()) - x.shape[-1]))


def _tree_sum(p: Tensor) -> Tensor:
    """Sum over the last dimension, a power of two, by halves: in one order on every machine."""
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
    # What stands before the oldest key that a query sees may be freed memory, and NaN · 0 is NaN.
    clean = scale[:end].float()
    clean[:oldest] = 0.0
    return _tiles(clean, end)


def _rotate(x: Tensor, scheme: AttentionScheme) -> Tensor:
    if not scheme.rotation_block:
        return x
    if scheme.rotation_sign is not None:
        x = x * scheme.rotation_sign
    return hadamard(x, scheme.rotation_block)


def _per_query_head(table: Tensor, scheme: AttentionScheme) -> Tensor:
    return table.repeat_interleave(scheme.num_heads // scheme.num_kv_heads, dim=0)


def _quantize_static(
    name: str, x: Tensor, scale: Tensor, offset: Tensor | None, saturation: Saturation | None
) -> Tensor:
    steps = x / scale
    if offset is not None:
        steps = steps + offset
    if saturation is not None:
        saturation.count(name, steps)
    return steps.round().clamp(-128, 127).to(torch.int8)


def _dequantize(x8: Tensor, token_scale: Tensor | None, scale: Tensor | None, offset: Tensor | None) -> Tensor:
    x = x8.float()
    if token_scale is not None:
        return x * token_scale.float()[..., None]
    if scale is None:
        raise ValueError("a page without token scales needs the scheme's static scale")
    return (x if offset is None else x - offset) * scale
