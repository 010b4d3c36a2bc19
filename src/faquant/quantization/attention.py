"""Calibrating the attention scheme of a layer from the keys and values it saw.

K is quantized after RoPE, so what a channel shows depends on the position. Each observed key is therefore seen at
many positions of the context: RoPE is a rotation, so turning a key on by a distance gives the key of the same text
that much further out.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..config import ModelConfig
from ..kernels.reference import hadamard, map_k
from ..kernels.scheme import AttentionScheme
from ..model.rope import Rope, apply_rope
from ..model.schemes import P_LEVELS
from ..recipe import AttentionRecipe
from .rotate import hadamard_block

MOVED_KEYS = 4096


def calibrate(
    config: ModelConfig, recipe: AttentionRecipe, keys: list[Tensor], values: list[Tensor], v_folded: bool
) -> AttentionScheme:
    """The scheme of one layer.

    Args:
        keys: for each calibration prompt float32 [tokens, Hkv, D] after RoPE, from position 0 on.
        values: likewise [tokens, Hkv, D], before any rotation.
        v_folded: whether V's rotation will be folded into the weights.
    """
    dim = config.head_dim
    block = hadamard_block(dim) if recipe.rotate else 0
    center = equalizer = None
    if recipe.center or recipe.equalize:
        low, high = _range(config, recipe, keys)
        center = (low + high) / 2 if recipe.center else None
        if recipe.equalize:
            reach = (high - low) / 2 if recipe.center else torch.maximum(high, -low)
            # A channel that is always the same has no reach; its equalizer must not be 0.
            equalizer = reach.clamp_min(1e-4 * float(reach.max()) or 1.0)
    scheme = AttentionScheme(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=dim,
        k_center=center,
        k_equalizer=equalizer,
        rotation_block=block,
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
    frequency of RoPE."""
    jitter = torch.rand(count, generator=torch.Generator().manual_seed(0))
    distances = ((torch.arange(count) + jitter) * (max(0, last) / count)).long()
    distances[-1] = max(0, last)
    return distances
