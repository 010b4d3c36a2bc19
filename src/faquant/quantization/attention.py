"""Calibrating the attention scheme of a layer from the keys and values it saw.

K is quantized after RoPE, so what a channel shows depends on the position: its map is therefore one for each block of
positions. RoPE is a rotation that depends on the position alone, so every observed key is turned back to position 0,
and from there to positions all over each block.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..checkpoint.model_config import ModelConfig
from ..kernels.quantizers import hadamard, map_k
from ..kernels.scheme import MAP_BLOCK, P_LEVELS, AttentionScheme, hadamard_block
from ..kernels.torch_backend import rope as apply_rope
from ..model.rope import Rope
from ..recipe import AttentionRecipe

PEAK_KEYS, PEAK_ROTATIONS = 4096, 1 << 15
"""Where static scales look for the greatest value: so many keys, and so many pairs of key and position a block."""


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
    rope = Rope(config, config.max_position)
    k, q = (torch.cat([_at_position_0(x, config) for x in prompts]) for prompts in (keys, queries))
    context = config.max_position
    blocks = [torch.arange(start, min(start + MAP_BLOCK, context)) for start in range(0, context, MAP_BLOCK)]
    center, equalizer = _center_and_equalizer(config, recipe, q, k, rope, blocks)
    scheme = AttentionScheme(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=dim,
        k_center=center,
        k_equalizer=equalizer,
        rotation_block=hadamard_block(dim) if recipe.rotate else 0,
        v_rotation_block=hadamard_block(dim) if recipe.rotate_v and not v_folded else 0,
        p_levels=P_LEVELS[recipe.p],
        p_float16=recipe.p == "int8",
    )
    if recipe.kv_scale == "token":
        return scheme
    peaks = torch.stack([_peak(k, rope, positions, scheme.at(block)) for block, positions in enumerate(blocks)])
    if scheme.k_equalizer is not None:
        # One table of scales serves all blocks of positions, so their equalizers bring them to one height.
        height = peaks.amax(-1, keepdim=True)
        height /= height.amax(0)
        scheme, peaks = replace(scheme, k_equalizer=scheme.k_equalizer * height), peaks / height
    k_peak = peaks.amax(0)
    v_peak = torch.zeros_like(k_peak)
    for v in values:
        rotated = hadamard(v, hadamard_block(dim)) if recipe.rotate_v else v
        v_peak = torch.maximum(v_peak, rotated.abs().amax(0))
    return _with_scales(scheme, recipe, k_peak, v_peak)


def _center_and_equalizer(
    config: ModelConfig, recipe: AttentionRecipe, q: Tensor, k: Tensor, rope: Rope, blocks: list[Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """K's mean and √(rms of the centered k / rms of q) for each block and channel, [blocks, Hkv, D].

    With a rotation behind it, rounding k' = k ⊘ e leaves an error of the score that grows as Σk²/e² · Σq²e², and
    rounding q' one that grows in the same way. By Cauchy and Schwarz that is least for e² ∝ rms(k)/rms(q).
    q is taken at the block's own positions: that of later ones too measured no better in a context of 6,144 tokens.
    """
    k_mean, k_square = _moments(k, rope, blocks)
    center = k_mean if recipe.center else None
    if not recipe.equalize:
        return center, None
    if center is not None:
        k_square = k_square - center.square()
    _, q_square = _moments(q, rope, blocks)
    q_square = q_square.view(len(blocks), config.num_kv_heads, config.group_size, config.head_dim).mean(2)
    return center, (_floored(k_square) / _floored(q_square)).pow(0.25)


def _moments(x: Tensor, rope: Rope, blocks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and mean square of each channel, [blocks, heads, D], of x [tokens, heads, D], all at position 0, after
    being turned to every position of each block.

    RoPE turns channel pairs (a, b) as the complex numbers a + ib, so both follow from E[z], E[|z|²] and E[z²].
    """
    half = x.shape[-1] // 2
    z = torch.complex(x[..., :half], x[..., half:])
    mean, power, skew = z.mean(0), z.abs().square().mean(0), z.square().mean(0)
    means, squares = [], []
    for positions in blocks:
        cos, sin = _rotation(rope, positions)
        rotation = torch.complex(cos[:, 0, :half], sin[:, 0, :half])
        rotated, skewed = mean * rotation.mean(0), (skew * rotation.square().mean(0)).real
        means.append(torch.cat((rotated.real, rotated.imag), -1))
        squares.append(torch.cat((power + skewed, power - skewed), -1) / 2)
    return torch.stack(means), torch.stack(squares)


def _rotation(rope: Rope, positions: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = rope.rotation(positions.numpy())
    return torch.from_numpy(cos), torch.from_numpy(sin)


def _at_position_0(x: Tensor, config: ModelConfig) -> Tensor:
    """A prompt's q or k [tokens, heads, D] after RoPE, all turned to position 0."""
    return apply_rope(x, *_rotation(Rope(config, len(x)), -torch.arange(len(x))))


def _floored(square: Tensor) -> Tensor:
    """Mean squares, none so much below its head's largest that its channel would get all the precision."""
    return square.clamp_min(1e-8 * square.amax(-1, keepdim=True).clamp_min(1e-12))


def _with_scales(scheme: AttentionScheme, recipe: AttentionRecipe, k_peak: Tensor, v_peak: Tensor) -> AttentionScheme:
    if recipe.kv_scale == "head":
        k_peak, v_peak = k_peak.amax(-1, keepdim=True), v_peak.amax(-1, keepdim=True)
    k_scale, v_scale = (peak.clamp_min(1e-6) / 127 for peak in (k_peak, v_peak))
    return replace(scheme, k_scale=k_scale, v_scale=v_scale, quantized_sum=recipe.p != "int8")


def _peak(k: Tensor, rope: Rope, positions: Tensor, scheme: AttentionScheme) -> Tensor:
    """Greatest magnitude of each channel [Hkv, D] of the keys, which stand at position 0, mapped by `scheme` after
    being turned to some of the `positions`, the last among them."""
    _, heads, dim = k.shape
    keys = k[:: -(-len(k) // PEAK_KEYS)].transpose(0, 1).contiguous()
    # At random within equal strides: even distances could beat with a frequency of RoPE.
    count = min(max(1, PEAK_ROTATIONS // keys.shape[1]), len(positions))
    jitter = torch.rand(count, generator=torch.Generator().manual_seed(int(positions[0])))
    some = positions[((torch.arange(count) + jitter) * (len(positions) / count)).long()]
    some[-1] = positions[-1]
    # The map is affine, so it is done as one product with its matrix [Hkv, D, D], that of RoPE multiplied in.
    unit = torch.eye(dim)[:, None, :].expand(dim, heads, dim)
    shift = map_k(torch.zeros(1, heads, dim), scheme)
    matrix = (map_k(unit, scheme) - shift).transpose(0, 1)
    peak = torch.zeros(heads, dim)
    for c, s in zip(*_rotation(rope, some), strict=True):
        image = keys @ (apply_rope(unit, c, s).transpose(0, 1) @ matrix) + shift.transpose(0, 1)
        peak = torch.maximum(peak, image.abs().amax(1))
    return peak
