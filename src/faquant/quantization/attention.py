"""Calibrating the attention scheme of a layer from the keys and values it saw.

K is quantized after RoPE, so what a channel shows depends on the position. Each observed key is therefore seen at
many positions of the context: RoPE is a rotation, so turning a key on by a distance gives the key of the same text
that much further out.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..config import ModelConfig
from ..kernels.reference import hadamard, hadamard_block, map_k
from ..kernels.scheme import AttentionScheme
from ..model.rope import Rope, apply_rope
from ..model.schemes import P_LEVELS
from ..recipe import AttentionRecipe

MOVED_KEYS = 4096


def calibrate(
    config: ModelConfig,
    recipe: AttentionRecipe,
    queries: list[Tensor],
    keys: list[Tensor],
    values: list[Tensor],
    v_folded: bool,
) -> AttentionScheme:
    """The scheme of one layer.

    Args:
        queries: for each calibration prompt float32 [tokens, Hq, D] after RoPE, from position 0 on.
        keys: likewise [tokens, Hkv, D].
        values: likewise [tokens, Hkv, D], before any rotation.
        v_folded: whether V's rotation will be folded into the weights.
    """
    dim = config.head_dim
    center, equalizer = _center_and_equalizer(config, recipe, queries, keys)
    scheme = AttentionScheme(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=dim,
        k_center=center,
        k_equalizer=equalizer,
        rotation_block=hadamard_block(dim) if recipe.rotate else 0,
        v_rotation_block=hadamard_block(dim) if recipe.rotate_v and not v_folded else 0,
        p_levels=P_LEVELS[recipe.p],
    )
    if recipe.kv_scale == "token":
        return scheme
    low, high = _range(config, recipe, keys, scheme)
    k_peak = torch.maximum(high, -low)
    v_peak = torch.zeros_like(k_peak)
    for v in values:
        rotated = hadamard(v, hadamard_block(dim)) if recipe.rotate_v else v
        v_peak = torch.maximum(v_peak, rotated.abs().amax(0))
    return _with_scales(scheme, recipe, k_peak, v_peak)


def _center_and_equalizer(
    config: ModelConfig, recipe: AttentionRecipe, queries: list[Tensor], keys: list[Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """K's mean and √(rms of the centred k / rms of q) for each channel [Hkv, D].

    With a rotation behind it, rounding k' = k ⊘ e leaves an error of the score that grows as Σk²/e² · Σq²e², and
    rounding q' one that grows in the same way. By Cauchy and Schwarz that is least for e² ∝ rms(k)/rms(q).
    """
    last = config.max_position - max(len(k) for k in keys)
    rotation = Rope(config, config.max_position).rotation(_distances(recipe.positions, last))
    k_mean, k_square = _moments(torch.cat(keys), *rotation)
    _, q_square = _moments(torch.cat(queries), *rotation)
    center = k_mean if recipe.center else None
    if not recipe.equalize:
        return center, None
    if center is not None:
        k_square = k_square - center.square()
    q_square = q_square.view(config.num_kv_heads, config.group_size, config.head_dim).mean(1)
    return center, (_floored(k_square) / _floored(q_square)).pow(0.25)


def _moments(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square of each channel [heads, D] of x [tokens, heads, D], turned by every rotation [n, 1, D].

    RoPE turns channel pairs (a, b) as the complex numbers a + ib, so both follow from E[z], E[|z|²] and E[z²].
    """
    half = x.shape[-1] // 2
    z = torch.complex(x[..., :half], x[..., half:])
    turn = torch.complex(cos[:, 0, :half], sin[:, 0, :half])
    mean = z.mean(0) * turn.mean(0)
    power, skew = z.abs().square().mean(0), (z.square().mean(0) * turn.square().mean(0)).real
    return torch.cat((mean.real, mean.imag), -1), torch.cat((power + skew, power - skew), -1) / 2


def _floored(square: Tensor) -> Tensor:
    """Mean squares, none so much below its head's largest that its channel would get all the precision."""
    return square.clamp_min(1e-8 * square.amax(-1, keepdim=True).clamp_min(1e-12))


def _with_scales(scheme: AttentionScheme, recipe: AttentionRecipe, k_peak: Tensor, v_peak: Tensor) -> AttentionScheme:
    if recipe.kv_scale == "head":
        k_peak, v_peak = k_peak.amax(-1, keepdim=True), v_peak.amax(-1, keepdim=True)
    k_scale, v_scale = (peak.clamp_min(1e-6) / 127 for peak in (k_peak, v_peak))
    return replace(scheme, k_scale=k_scale, v_scale=v_scale, quantized_sum=recipe.p != "int8")


def _range(
    config: ModelConfig, recipe: AttentionRecipe, keys: list[Tensor], scheme: AttentionScheme | None = None
) -> tuple[Tensor, Tensor]:
    """Least and greatest value of each channel [Hkv, D] of the keys, mapped by `scheme`, over positions of the context.

    Every key counts where it is; up to MOVED_KEYS of them also at `positions` places spread over the context, its end
    included.
    """
    heads, dim = config.num_kv_heads, config.head_dim
    everything = torch.cat(keys)
    # The map is affine, so it is done as one product with its matrix [Hkv, D, D], that of RoPE multiplied in.
    unit = torch.eye(dim)[:, None, :].expand(dim, heads, dim)
    shift = torch.zeros(1, heads, dim)
    matrix = unit
    if scheme is not None:
        shift = map_k(shift, scheme)
        matrix = map_k(unit, scheme) - shift
    matrix = matrix.transpose(0, 1)
    low, high = _extent(everything.transpose(0, 1), matrix)
    if recipe.positions:
        moved = everything[:: -(-len(everything) // MOVED_KEYS)].transpose(0, 1).contiguous()
        distances = _distances(recipe.positions, config.max_position - max(len(k) for k in keys))
        cos, sin = Rope(config, config.max_position).rotation(distances)
        for c, s in zip(cos, sin, strict=True):
            turn = apply_rope(unit, c, s).transpose(0, 1)
            lower, higher = _extent(moved, turn @ matrix)
            low, high = torch.minimum(low, lower), torch.maximum(high, higher)
    return low + shift[0], high + shift[0]


def _extent(keys: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    image = keys @ matrix
    return image.amin(1), image.amax(1)


def _distances(count: int, last: int) -> Tensor:
    """How far to move the keys, in tokens: at random within equal strides, since even distances could beat with a
    frequency of RoPE. Without any, they stay where they are."""
    if count == 0:
        return torch.zeros(1, dtype=torch.int64)
    jitter = torch.rand(count, generator=torch.Generator().manual_seed(0))
    distances = ((torch.arange(count) + jitter) * (max(0, last) / count)).long()
    distances[-1] = max(0, last)
    return distances
