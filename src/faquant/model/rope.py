"""Rotary position embedding: the frequencies of each kind, and tables of cosine and sine.

Types: default (RoFormer, arXiv 2104.09864), linear (position interpolation, arXiv 2306.15595), dynamic (NTK by
length), yarn (arXiv 2309.00071), llama3 (Llama 3.1), longrope (arXiv 2402.13753). transformers is the oracle for each.

Layers of a model may have different kinds of RoPE, or none, which is a rotation by 0. A rotation of a part of a head's
channels rotates pairs (i, i + D/2) too: the rows of q_proj and k_proj are reordered for it when they are read
(formats/fused.py), so no kernel knows of it.

No value depends on a library or CPU: powers and logarithms are computed with `decimal`, cosine and sine by
csrc/ops/rope_tables.cpp, and the rest with IEEE arithmetic.
"""

import math
from decimal import Context, Decimal
from functools import lru_cache

import numpy as np

from ..checkpoint.model_config import ModelConfig
from ..checkpoint.rope_config import RopeConfig
from ..kernels import _C
from ..kernels.arrays import Floats, Integers

_EXACT = Context(prec=40)


class Rope:
    """The frequencies of one request for each kind of layer; requests with equal frequencies share the arrays, which
    must not be changed. Only dynamic NTK and longrope depend on `length`, the maximum length of the request in tokens.

    Attributes:
        frequencies: of the first kind, float32 [rotated channels / 2], in radians per token.
        scaling: of the first kind, the factor on cosine and sine (YaRN's attention factor); 1 for most.
    """

    def __init__(self, config: ModelConfig, length: int | None = None) -> None:
        self._dim, self._root = config.head_dim, math.sqrt(config.score_factor)
        self._kinds = [_frequencies(rope, config.head_dim, rope.length_used(length)) for rope in config.ropes]
        self.frequencies, self.scaling = self._kinds[0]

    def tables(self, positions: Integers) -> tuple[Floats, Floats]:
        """Cosine and sine for int64 positions [tokens]: two [tokens, kinds, D]. A factor on the scores is in both q and
        k, as its root."""
        kinds = [self._tables(positions, frequencies, scaling, self._root) for frequencies, scaling in self._kinds]
        if len(kinds) == 1:
            return kinds[0]
        cos, sin = (np.concatenate(tables, axis=1) for tables in zip(*kinds, strict=True))
        return cos, sin

    def rotation(self, positions: Integers, kind: int = 0) -> tuple[Floats, Floats]:
        """As `tables` for one kind, [tokens, 1, D], without any factor: a pure rotation."""
        return self._tables(positions, self._kinds[kind][0], 1.0, 1.0)

    def _tables(self, positions: Integers, frequencies: Floats, scaling: float, root: float) -> tuple[Floats, Floats]:
        """Of one kind, [tokens, 1, D]."""
        count, half, tokens = len(frequencies), self._dim // 2, len(positions)
        cos, sin = np.empty((tokens, 2 * count), np.float32), np.empty((tokens, 2 * count), np.float32)
        _C.rope_tables(frequencies, np.ascontiguousarray(positions, np.int64), scaling * root, cos, sin)
        if count == half:
            return cos[:, None, :], sin[:, None, :]
        wide = np.zeros((2, tokens, 2, half), np.float32)
        wide[0, :, :, count:] = root  # these channels are not rotated, and no factor of RoPE's applies to them
        for table, part in zip(wide, (cos, sin), strict=True):
            table[:, :, :count] = part.reshape(tokens, 2, count)
        return wide[0].reshape(tokens, 1, 2 * half), wide[1].reshape(tokens, 1, 2 * half)


@lru_cache
def _frequencies(rope: RopeConfig, head_dim: int, length: int | None) -> tuple[Floats, float]:
    """Frequencies [rotated channels / 2] in radians per token, and the factor on cosine and sine. Kept, because decimal
    powers are slow.

    Operations and their order are those of transformers: at position 100,000, one more rounding is 0.01 radian.
    """
    dim = rope.rotary_dim(head_dim)
    exponents = np.arange(0, dim, 2).astype(np.float32) / np.float32(dim)
    theta, factor, original = rope.theta, rope.factor, rope.original_max_position
    if rope.rope_type == "dynamic":
        length = length or original
        theta *= _power(factor * length / original - (factor - 1), dim / (dim - 2))
    base = float(np.float32(theta))
    wavelengths = np.array([_power(base, float(exponent)) for exponent in exponents], np.float32)
    if rope.rope_type == "longrope":
        beyond = length is not None and length > original
        factors = np.array(rope.long_factor if beyond else rope.short_factor, np.float32)
        return 1.0 / (factors * wavelengths), _longrope_attention_factor(rope)
    frequencies = 1.0 / wavelengths
    if rope.rope_type == "linear":
        return frequencies / factor, 1.0
    if rope.rope_type == "yarn":
        kept = 1 - _yarn_ramp(rope, dim)
        return 1.0 / (factor * wavelengths) * (1 - kept) + frequencies * kept, _yarn_attention_factor(rope)
    if rope.rope_type == "llama3":
        return _llama3(rope, frequencies), 1.0
    return frequencies, 1.0


def _power(base: float, exponent: float) -> float:
    return float(_EXACT.power(Decimal(base), Decimal(exponent)))


def _log(x: float) -> float:
    return float(_EXACT.ln(Decimal(x)))


def _yarn_ramp(rope: RopeConfig, dim: int) -> Floats:
    """How much each frequency [D/2] is interpolated: 0 for the fast ones, 1 for the slow ones."""

    def channel(rotations: float) -> float:
        """The channel pair that completes `rotations` rotations within the original context."""
        return dim * _log(rope.original_max_position / (rotations * 2 * math.pi)) / (2 * _log(rope.theta))

    low, high = channel(rope.beta_fast), channel(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    return np.clip((np.arange(dim // 2).astype(np.float32) - low) / (high - low), 0, 1)


def _yarn_attention_factor(rope: RopeConfig) -> float:
    def scale(mscale: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * mscale * _log(rope.factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)


def _longrope_attention_factor(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor <= 1:
        return 1.0
    return math.sqrt(1 + _log(rope.factor) / _log(rope.original_max_position))


def _llama3(rope: RopeConfig, frequencies: Floats) -> Floats:
    """Long wavelengths are interpolated, short ones kept, and those between are mixed."""
    # torch rounds twice when it divides a number by a tensor: it multiplies by the reciprocal.
    wavelengths = 1 / frequencies * (2 * math.pi)
    original, low, high = rope.original_max_position, rope.low_freq_factor, rope.high_freq_factor
    smooth = (1 / wavelengths * original - low) / (high - low)
    mixed = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    kept = np.where(wavelengths > original / low, frequencies / rope.factor, frequencies)
    return np.where((wavelengths <= original / low) & (wavelengths >= original / high), mixed, kept)
