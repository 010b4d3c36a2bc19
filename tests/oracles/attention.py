"""Attention written from the formulas in src/faquant/kernels/README.md in NumPy float64, for one
query and one head at a time.

It shares no code with faquant.kernels.reference, and uses only the tables of the scheme.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from faquant.kernels.scheme import AttentionScheme

Array = NDArray[np.float64]


class Quantized(NamedTuple):
    """Integers [tokens, heads, D], and their scales for each token and head [tokens, heads]."""

    values: Array
    step: Array


def sylvester(size: int) -> Array:
    """The orthonormal Hadamard matrix H[i, j] = (-1)^(number of ones in i AND j) / √size."""
    return np.array([[(-1) ** (i & j).bit_count() for j in range(size)] for i in range(size)]) / math.sqrt(size)


def table(value: object, heads: int, dim: int, default: float) -> Array:
    """A table of the scheme as [heads, dim]."""
    if value is None:
        return np.full((heads, dim), default)
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (heads, dim))


def rotation(scheme: AttentionScheme) -> Array:
    """R with k' = k R: the signs, then H on each block."""
    dim = scheme.head_dim
    sign = np.ones(dim) if scheme.rotation_sign is None else np.asarray(scheme.rotation_sign, dtype=np.float64)
    if not scheme.rotation_block:
        return np.eye(dim)
    return np.diag(sign) @ np.kron(np.eye(dim // scheme.rotation_block), sylvester(scheme.rotation_block))


def mapped_k(k: Array, scheme: AttentionScheme) -> Array:
    """k' = Hᵀ((k - c) ⊘ e)."""
    shape = scheme.num_kv_heads, scheme.head_dim
    return (k - table(scheme.k_center, *shape, 0.0)) / table(scheme.k_equalizer, *shape, 1.0) @ rotation(scheme)


def mapped_q(q: Array, scheme: AttentionScheme) -> Array:
    """q' = s ⊙ Hᵀ(e ⊙ q), with s where K's scale is per channel."""
    heads, kv_heads, dim = scheme.num_heads, scheme.num_kv_heads, scheme.head_dim
    out = np.empty_like(q)
    for head in range(heads):
        kv = head // (heads // kv_heads)
        out[:, head] = (q[:, head] * table(scheme.k_equalizer, kv_heads, dim, 1.0)[kv]) @ rotation(scheme)
        if scheme.q_scale is not None and scheme.q_scale.shape[1] > 1:
            grid = np.asarray(scheme.q_scale, dtype=np.float64)[head]
            out[:, head] = np.clip(np.rint(out[:, head] / grid), -128, 127) * grid
        if scheme.k_scale is not None and scheme.k_scale.shape[1] > 1:
            out[:, head] *= np.asarray(scheme.k_scale, dtype=np.float64)[kv]
    return out


def half_up(x: Array) -> Array:
    """The smallest positive float16 that is at least x, or the greatest float16 if there is none."""
    near = np.clip(x, 2.0**-24, 65504.0).astype(np.float16)
    up = np.where((near < x) & (near < 65504), np.nextafter(near, np.float16(np.inf)), near)
    return up.astype(np.float64)


def quantized_k(k: Array, scheme: AttentionScheme) -> Quantized:
    return _cached(mapped_k(k, scheme), scheme, scheme.k_scale, scheme.k_offset)


def quantized_v(v: Array, scheme: AttentionScheme) -> Quantized:
    return _cached(v, scheme, scheme.v_scale, scheme.v_offset)


def quantized_q(q: Array, scheme: AttentionScheme) -> Quantized:
    mapped = mapped_q(q, scheme)
    if scheme.q_scale is not None and scheme.q_scale.shape[1] == 1:
        step = np.broadcast_to(np.asarray(scheme.q_scale, dtype=np.float64)[:, 0], q.shape[:2])
        return Quantized(np.clip(np.rint(mapped / step[..., None]), -128, 127), step)
    step = np.maximum(np.abs(mapped).max(-1) / 127, 1e-30)
    return Quantized(np.clip(np.rint(mapped / step[..., None]), -127, 127), step)


def _cached(x: Array, scheme: AttentionScheme, scale: object, offset: object) -> Quantized:
    tokens, heads, dim = x.shape
    if scale is None:
        step = half_up(np.abs(x).max(-1) / 127)
        return Quantized(np.clip(np.rint(x / step[..., None]), -127, 127), step)
    steps = x / table(scale, heads, dim, 1.0) + table(offset, heads, dim, 0.0)
    return Quantized(np.clip(np.rint(steps), -128, 127), np.ones((tokens, heads)))


def attention(
    q: Quantized,
    k: Quantized,
    v: Quantized,
    scheme: AttentionScheme,
    start: int,
    window: int | None = None,
    tile: int = 128,
    split: int = 2048,
) -> Array:
    """Causal attention [tokens, Hq, D] of integers; each tile of keys has its own scale of P."""
    out = np.empty_like(q.values)
    for row in range(q.values.shape[0]):
        newest = start + row
        oldest = 0 if window is None else max(0, newest - window + 1)
        for head in range(scheme.num_heads):
            kv = head // (scheme.num_heads // scheme.num_kv_heads)
            per_head = 1.0
            if scheme.k_scale is not None and scheme.k_scale.shape[1] == 1:
                per_head = float(scheme.k_scale[kv, 0])
            scores = k.values[: newest + 1, kv] @ q.values[row, head]
            scores = scores * k.step[: newest + 1, kv] * q.step[row, head] * per_head / math.sqrt(scheme.head_dim)
            top, total, result = scores[oldest:].max(), 0.0, np.zeros(scheme.head_dim)
            for begin in range(0, newest + 1, split):
                for first in range(begin, min(begin + split, newest + 1), tile):
                    keys = slice(max(first, oldest), min(first + tile, newest + 1))
                    if keys.start >= keys.stop:
                        continue
                    part, weight = _tile(scores[keys], v, keys, kv, scheme)
                    share = math.exp(scores[keys].max() - top)
                    result, total = result + part * share, total + weight * share
            out[row, head] = result / total
    return out


def _tile(scores: Array, v: Quantized, keys: slice, kv: int, scheme: AttentionScheme) -> tuple[Array, float]:
    """∑ P·V and the denominator of one tile, relative to its greatest score."""
    heads, dim, levels = scheme.num_kv_heads, scheme.head_dim, scheme.p_levels
    p = np.exp(scores - scores.max())
    weighted = p * v.step[keys, kv]
    p_step = weighted.max() / levels
    exact = weighted / p_step
    p_int = np.rint(exact.astype(np.float16).astype(np.float64) if levels == 127 else exact)
    zero = table(scheme.v_offset, heads, dim, 0.0)[kv]
    out = (p_int @ v.values[keys, kv] - zero * p_int.sum()) * p_step * table(scheme.v_scale, heads, dim, 1.0)[kv]
    return out, float((p_int * p_step).sum() if scheme.quantized_sum else p.sum())


def exact_attention(q: Array, k: Array, v: Array, start: int, window: int | None = None) -> Array:
    """Causal float attention [tokens, Hq, D], nothing quantized."""
    out = np.empty_like(q)
    for row in range(q.shape[0]):
        newest = start + row
        seen = slice(0 if window is None else max(0, newest - window + 1), newest + 1)
        for head in range(q.shape[1]):
            kv = head // (q.shape[1] // k.shape[1])
            scores = k[seen, kv] @ q[row, head] / math.sqrt(q.shape[2])
            p = np.exp(scores - scores.max())
            out[row, head] = p @ v[seen, kv] / p.sum()
    return out
