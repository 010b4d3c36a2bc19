"""Calibrates the attention scheme of a layer from observed queries, keys and values.

K is quantized after RoPE, so the statistics of its channels depend on the position, and each block of positions has its
own map. RoPE is a rotation that depends only on the position, so every observed key is rotated back to position 0, and
from there to positions all over each block.
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
"""Static scales cover the greatest value of this many keys, and of this many pairs of key and position per block."""


def calibrate(
    config: ModelConfig,
    recipe: AttentionRecipe,
    queries: list[Tensor],
    keys: list[Tensor],
    values: list[Tensor],
    v_folded: bool,
    layer: int = 0,
) -> AttentionScheme:
    """The scheme of one layer.

    Args:
        queries: for each calibration prompt, float32 [tokens, Hq, D] after RoPE, from position 0 on.
        keys: likewise [tokens, Hkv, D].
        values: likewise [tokens, Hkv, D], before any rotation.
        v_folded: whether V's rotation will be folded into the weights.
        layer: its number, for the kind of RoPE that it has.
    """
    dim = config.head_dim
    rope = _Rotations(config, layer)
    k, q = (torch.cat([rope.to_position_0(x) for x in prompts]) for prompts in (keys, queries))
    context = config.max_position if rope.rotates else 1  # without RoPE one map is that of all positions
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
        return scheme if rope.rotates else scheme.at(0)
    found = [_range(k, rope, positions, scheme.at(block)) for block, positions in enumerate(blocks)]
    k_low, k_high = (torch.stack(ends) for ends in zip(*found, strict=True))
    if scheme.k_equalizer is not None:
        # All blocks of positions share one table of scales, so the equalizers scale them to the same range.
        height = torch.maximum(-k_low, k_high).amax(-1, keepdim=True)
        height /= height.amax(0)
        scheme = replace(scheme, k_equalizer=scheme.k_equalizer * height)
        k_low, k_high = k_low / height, k_high / height
    v = torch.cat([hadamard(v, hadamard_block(dim)) if recipe.rotate_v else v for v in values])
    return _with_scales(
        scheme if rope.rotates else scheme.at(0), recipe, (k_low.amin(0), k_high.amax(0)), (v.amin(0), v.amax(0))
    )


def _center_and_equalizer(
    config: ModelConfig, recipe: AttentionRecipe, q: Tensor, k: Tensor, rope: "_Rotations", blocks: list[Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """K's mean, and √(rms of the centered k / rms of q), for each block and channel, [blocks, Hkv, D].

    If a rotation follows, rounding k' = k ⊘ e causes an error of the score that grows as Σk²/e² · Σq²e², and so does
    rounding q'. By the Cauchy-Schwarz inequality, it is least for e² ∝ rms(k)/rms(q). q is taken at the block's own
    positions; including later ones was no better in a context of 6,144 tokens.
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


def _moments(x: Tensor, rope: "_Rotations", blocks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and mean square of each channel, [blocks, heads, D], after rotating x [tokens, heads, D] from position 0 to
    every position of each block.

    RoPE rotates channel pairs (a, b) as complex numbers a + ib, so both follow from E[z], E[|z|²] and E[z²].
    """
    half = x.shape[-1] // 2
    z = torch.complex(x[..., :half], x[..., half:])
    mean, power, skew = z.mean(0), z.abs().square().mean(0), z.square().mean(0)
    means, squares = [], []
    for positions in blocks:
        cos, sin = rope.to(positions)
        rotation = torch.complex(cos[:, 0, :half], sin[:, 0, :half])
        rotated, skewed = mean * rotation.mean(0), (skew * rotation.square().mean(0)).real
        means.append(torch.cat((rotated.real, rotated.imag), -1))
        squares.append(torch.cat((power + skewed, power - skewed), -1) / 2)
    return torch.stack(means), torch.stack(squares)


class _Rotations:
    """A layer's rotations of q and k. Where frequencies depend on a request's length, those of all lengths count."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        self._config, self._kind = config, config.rope_kind(layer)
        kind = config.ropes[self._kind]
        self.rotates = kind.rope_type != "none"
        lengths = [config.max_position]
        if kind.rope_type == "longrope" and kind.original_max_position < config.max_position:
            lengths = [kind.original_max_position, config.max_position]
        self._ropes = [(length, Rope(config, length)) for length in lengths]

    def to(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [rotations, 1, D] of all rotations from position 0 to these positions."""
        tables = [rope.rotation(positions[positions < length].numpy(), self._kind) for length, rope in self._ropes]
        cos, sin = (torch.cat([torch.from_numpy(table) for table in part]) for part in zip(*tables, strict=True))
        return cos, sin

    def to_position_0(self, x: Tensor) -> Tensor:
        """q or k [tokens, heads, D] of a prompt after RoPE, rotated back to position 0."""
        back = Rope(self._config, len(x)).rotation((-torch.arange(len(x))).numpy(), self._kind)
        return apply_rope(x, *(torch.from_numpy(table) for table in back))


def _floored(square: Tensor) -> Tensor:
    """Mean squares, limited from below relative to the head's largest, so that no channel gets all the precision."""
    return square.clamp_min(1e-8 * square.amax(-1, keepdim=True).clamp_min(1e-12))


def _with_scales(
    scheme: AttentionScheme, recipe: AttentionRecipe, k: tuple[Tensor, Tensor], v: tuple[Tensor, Tensor]
) -> AttentionScheme:
    """The scheme with scales, and zero points if the recipe has them, for the least and greatest values of K's and V's
    channels, [Hkv, D] each."""
    (k_scale, k_offset), (v_scale, v_offset) = (_scale_of(*ends, recipe) for ends in (k, v))
    return replace(
        scheme,
        k_scale=k_scale,
        k_offset=k_offset,
        v_scale=v_scale,
        v_offset=v_offset,
        quantized_sum=recipe.p != "int8",
    )


def _scale_of(low: Tensor, high: Tensor, recipe: AttentionRecipe) -> tuple[Tensor, Tensor | None]:
    if recipe.kv_scale == "head":
        low, high = low.amin(-1, keepdim=True), high.amax(-1, keepdim=True)
    if not recipe.zero_points:
        return torch.maximum(-low, high).clamp_min(1e-6) / 127, None
    # With 0 in the range, zero points fit in int8, as engines store them.
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = (high - low).clamp_min(2e-6) / 254
    return scale, -((low + high) / 2 / scale).round()


def _range(k: Tensor, rope: _Rotations, positions: Tensor, scheme: AttentionScheme) -> tuple[Tensor, Tensor]:
    """Least and greatest value of each channel [Hkv, D] after rotating the keys from position 0 to a sample of
    `positions`, including the last one, and mapping them by `scheme`."""
    _, heads, dim = k.shape
    keys = k[:: -(-len(k) // PEAK_KEYS)].transpose(0, 1).contiguous()
    # Random within equal strides: equal distances could alias with a frequency of RoPE.
    count = min(max(1, PEAK_ROTATIONS // keys.shape[1]), len(positions))
    jitter = torch.rand(count, generator=torch.Generator().manual_seed(int(positions[0])))
    some = positions[((torch.arange(count) + jitter) * (len(positions) / count)).long()]
    some[-1] = positions[-1]
    # The map is affine: apply it, together with RoPE, as one product with a matrix [Hkv, D, D].
    unit = torch.eye(dim)[:, None, :].expand(dim, heads, dim)
    shift = map_k(torch.zeros(1, heads, dim), scheme)
    matrix = (map_k(unit, scheme) - shift).transpose(0, 1)
    low, high = torch.full((heads, dim), torch.inf), torch.full((heads, dim), -torch.inf)
    for c, s in zip(*rope.to(some), strict=True):
        image = keys @ (apply_rope(unit, c, s).transpose(0, 1) @ matrix) + shift.transpose(0, 1)
        some_low, some_high = image.aminmax(dim=1)
        low, high = torch.minimum(low, some_low), torch.maximum(high, some_high)
    return low, high
