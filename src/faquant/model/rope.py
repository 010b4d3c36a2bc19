"""Rotary position embedding: frequencies of each kind, tables, application.

Kinds: default (RoFormer, arXiv 2104.09864), linear (position interpolation, arXiv 2306.15595), dynamic (NTK by
length), yarn (arXiv 2309.00071), llama3 (Llama 3.1). transformers is the oracle for each.
"""

import math

import torch
from torch import Tensor

from ..checkpoint.model_config import ModelConfig, RopeConfig


class Rope:
    """Frequencies of one request. Only dynamic NTK depends on `length`, the request's greatest length in tokens."""

    def __init__(self, config: ModelConfig, length: int | None = None) -> None:
        self.frequencies, self.scaling = _frequencies(config.rope, config.head_dim, length)

    def tables(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Cosine and sine for int64 positions [tokens]: two [tokens, 1, D], to be given to apply_rope."""
        cos, sin = self.rotation(positions)
        return (cos * self.scaling).to(dtype), (sin * self.scaling).to(dtype)

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As tables, without the attention factor that some kinds multiply in: a pure rotation, float32."""
        angles = positions.float()[:, None] * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, None, :]
        return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs (i, i + D/2) of x [tokens, heads, D] by tables of shape [tokens, 1, D]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def _frequencies(rope: RopeConfig, dim: int, length: int | None) -> tuple[Tensor, float]:
    """Frequencies [D/2] in radians per token, and the factor on cosine and sine.

    Each operation is transformers' own, in its order: at position 100,000 one rounding more is 0.01 radian.
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    theta, factor, original = rope.theta, rope.factor, rope.original_max_position
    if rope.rope_type == "dynamic":
        length = max(length or 0, original)
        theta *= (factor * length / original - (factor - 1)) ** (dim / (dim - 2))
    wavelengths = theta**exponents
    frequencies = 1.0 / wavelengths
    if rope.rope_type == "linear":
        return frequencies / factor, 1.0
    if rope.rope_type == "yarn":
        kept = 1 - _yarn_ramp(rope, dim)
        return 1.0 / (factor * wavelengths) * (1 - kept) + frequencies * kept, _yarn_attention_factor(rope)
    if rope.rope_type == "llama3":
        return _llama3(rope, frequencies), 1.0
    return frequencies, 1.0


def _yarn_ramp(rope: RopeConfig, dim: int) -> Tensor:
    """How far each frequency [D/2] is interpolated: 0 for the fast ones, 1 for the slow ones."""

    def channel(rotations: float) -> float:
        """The pair that turns `rotations` times within the original context."""
        return dim * math.log(rope.original_max_position / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = channel(rope.beta_fast), channel(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    return ((torch.arange(dim // 2).float() - low) / (high - low)).clamp(0, 1)


def _yarn_attention_factor(rope: RopeConfig) -> float:
    def scale(mscale: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * mscale * math.log(rope.factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)


def _llama3(rope: RopeConfig, frequencies: Tensor) -> Tensor:
    """Long waves are interpolated, short ones kept, those between are mixed."""
    wavelengths = 2 * math.pi / frequencies
    original, low, high = rope.original_max_position, rope.low_freq_factor, rope.high_freq_factor
    smooth = (original / wavelengths - low) / (high - low)
    mixed = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    kept = torch.where(wavelengths > original / low, frequencies / rope.factor, frequencies)
    return torch.where((wavelengths <= original / low) & (wavelengths >= original / high), mixed, kept)
