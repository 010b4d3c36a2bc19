"""Rotary position embedding: the frequencies of each kind, and tables of cosine and sine.

Kinds: default (RoFormer, arXiv 2104.09864), linear (position interpolation, arXiv 2306.15595), dynamic (NTK by
length), yarn (arXiv 2309.00071), llama3 (Llama 3.1). transformers is the oracle for each.

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
    """Frequencies of one request, shared by all layers; requests with equal frequencies share the arrays, which must
    not be changed. Only dynamic NTK depends on `length`, the maximum length of the request in tokens.

    Attributes:
        frequencies: float32 [D/2], in radians per token.
        scaling: the factor on cosine and sine (YaRN's attention factor); 1 for most kinds.
    """

    def __init__(self, config: ModelConfig, length: int | None = None) -> None:
        used = length if config.rope.rope_type == "dynamic" else None
        self.frequencies, self.scaling = _frequencies(config.rope, config.head_dim, used)

    def tables(self, positions: Integers) -> tuple[Floats, Floats]:
        """Cosine and sine for int64 positions [tokens]: two [tokens, 1, D]."""
        return self._tables(positions, self.scaling)

    def rotation(self, positions: Integers) -> tuple[Floats, Floats]:
        """As `tables`, without the attention factor of some kinds: a pure rotation."""
        return self._tables(positions, 1.0)

    def _tables(self, positions: Integers, scaling: float) -> tuple[Floats, Floats]:
        shape = len(positions), 2 * len(self.frequencies)
        cos, sin = np.empty(shape, np.float32), np.empty(shape, np.float32)
        _C.rope_tables(self.frequencies, np.ascontiguousarray(positions, np.int64), scaling, cos, sin)
        return cos[:, None, :], sin[:, None, :]


@lru_cache
def _frequencies(rope: RopeConfig, dim: int, length: int | None) -> tuple[Floats, float]:
    """Frequencies [D/2] in radians per token, and the factor on cosine and sine. Kept, because decimal powers are slow.

    Operations and their order are those of transformers: at position 100,000, one more rounding is 0.01 radian.
    """
    exponents = np.arange(0, dim, 2).astype(np.float32) / np.float32(dim)
    theta, factor, original = rope.theta, rope.factor, rope.original_max_position
    if rope.rope_type == "dynamic":
        length = max(length or 0, original)
        theta *= _power(factor * length / original - (factor - 1), dim / (dim - 2))
    base = float(np.float32(theta))
    wavelengths = np.array([_power(base, float(exponent)) for exponent in exponents], np.float32)
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


def _llama3(rope: RopeConfig, frequencies: Floats) -> Floats:
    """Long wavelengths are interpolated, short ones kept, and those between are mixed."""
    # torch rounds twice when it divides a number by a tensor: it multiplies by the reciprocal.
    wavelengths = 1 / frequencies * (2 * math.pi)
    original, low, high = rope.original_max_position, rope.low_freq_factor, rope.high_freq_factor
    smooth = (1 / wavelengths * original - low) / (high - low)
    mixed = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    kept = np.where(wavelengths > original / low, frequencies / rope.factor, frequencies)
    return np.where((wavelengths <= original / low) & (wavelengths >= original / high), mixed, kept)
