"""The calibration of K's center, equalizer and scales over the positions of the context."""

import pytest
import torch

from faquant.checkpoint.model_config import ModelConfig, parse_config
from faquant.kernels.quantizers import dequantize_k, hadamard, map_k, quantize_k
from faquant.kernels.scheme import MAP_BLOCK
from faquant.kernels.torch_backend import rope as apply_rope
from faquant.model.rope import Rope
from faquant.quantization import attention
from faquant.recipe import AttentionRecipe

RAW = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 96,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2500,
}
CONFIG = parse_config(RAW)


def _keys(seed: int, lengths: tuple[int, ...] = (30, 7)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(2, 16, generator=generator) * 5
    return [torch.randn(length, 2, 16, generator=generator) * scale + scale for length in lengths]


def _rotation(positions: torch.Tensor, config: ModelConfig = CONFIG) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = Rope(config).rotation(positions.numpy())
    return torch.from_numpy(cos), torch.from_numpy(sin)


def _rotated(prompts: list[torch.Tensor], positions: torch.Tensor) -> torch.Tensor:
    """Every token, whatever its position in the prompt, at each of the positions: the plain way."""
    cos, sin = (x[:, None] for x in _rotation(positions))
    back = [apply_rope(x, *_rotation(-torch.arange(len(x)))) for x in prompts]
    return torch.cat([apply_rope(torch.cat(back), c[0], s[0]) for c, s in zip(cos, sin, strict=True)])


def _queries(seed: int) -> list[torch.Tensor]:
    return [x.repeat_interleave(3, dim=1) for x in _keys(seed)]


@pytest.mark.parametrize("center", [True, False])
def test_center_is_the_mean_and_equalizer_balances_k_and_q_in_each_block(center: bool) -> None:
    keys, queries = _keys(0), _queries(3)
    scheme = attention.calibrate(CONFIG, AttentionRecipe(center=center), queries, keys, keys, v_folded=True)
    blocks = torch.arange(2500).split(MAP_BLOCK)
    assert scheme.k_equalizer.shape == (3, 2, 16)
    if not center:
        assert scheme.k_center is None
    for block, positions in enumerate(blocks):
        k = _rotated(keys, positions)
        mean = k.mean(0) if center else torch.zeros(2, 16)
        if center:
            torch.testing.assert_close(scheme.k_center[block], mean, rtol=1e-4, atol=1e-4)
        k_rms = (k - mean).square().mean(0).sqrt()
        q_rms = _rotated(queries, positions).square().mean(0).view(2, 3, 16).mean(1).sqrt()
        torch.testing.assert_close(scheme.k_equalizer[block], (k_rms / q_rms).sqrt(), rtol=1e-3, atol=1e-5)


def test_keys_that_never_vary_are_followed_through_the_context() -> None:
    """For a constant key before RoPE, slow channels only have to quantize the rotation within a block."""
    config = parse_config({**RAW, "rope_theta": 1e6})
    key = torch.arange(16.0).expand(40, 2, 16)
    keys = [apply_rope(key, *_rotation(torch.arange(40), config))]
    queries = [keys[0].repeat_interleave(3, dim=1)]
    scheme = attention.calibrate(config, AttentionRecipe(), queries, keys, keys, v_folded=True)
    for position in (10, 1500, 2490):
        there = apply_rope(key[:1], *_rotation(torch.tensor([position]), config))
        left = (there - scheme.at(position // MAP_BLOCK).k_center)[0, :, 7]
        assert left.abs().max() < 0.05 * key[0, 0, 7]


def test_the_equalizer_makes_the_scores_more_precise_where_q_and_k_differ_by_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = torch.logspace(-1, 1, 16)[torch.randperm(16, generator=generator)]
    q = torch.randn(400, 6, 16, generator=generator) / shape
    k = torch.randn(400, 2, 16, generator=generator) * shape
    errors = []
    for equalize in (False, True):
        recipe = AttentionRecipe(equalize=equalize)
        scheme = attention.calibrate(CONFIG, recipe, [q], [k], [k], v_folded=True)
        k8, scale = quantize_k(k, scheme.at(0))
        cached = dequantize_k(k8, scale, scheme.at(0))
        scores, exact = (torch.einsum("qhd,khd->hqk", q[:, ::3], x) for x in (cached, k))
        # A shift that all keys of a row share cancels in the softmax.
        difference = scores - exact
        errors.append(float((difference - difference.mean(-1, keepdim=True)).square().mean()))
    assert errors[1] < 0.2 * errors[0]


@pytest.mark.parametrize("granularity", ["channel", "head"])
def test_static_scales_cover_the_mapped_keys_of_every_block(granularity: str) -> None:
    keys, values = _keys(1), _keys(2)
    recipe = AttentionRecipe(kv_scale=granularity)
    scheme = attention.calibrate(CONFIG, recipe, _queries(3), keys, values, v_folded=False)
    peak = torch.zeros(2, 16)
    for block, positions in enumerate(torch.arange(2500).split(MAP_BLOCK)):
        k = _rotated(keys, positions)
        mapped = map_k(k, scheme.at(block)).abs().amax(0)
        peak = torch.maximum(peak, mapped)
        # Keys of all blocks have the same size, so that none is quantized coarsely.
        torch.testing.assert_close(mapped.amax(-1), scheme.k_scale.amax(-1) * 127, rtol=0.25, atol=0)
    width = 1 if granularity == "head" else 16
    assert scheme.k_scale.shape == scheme.v_scale.shape == (2, width)
    # Only some of the positions are sampled.
    low, high = (0.75, 1.0001) if granularity == "channel" else (0.9, 1.0001)
    ratio = scheme.k_scale * 127 / (peak if width > 1 else peak.amax(-1, keepdim=True))
    assert low < ratio.min() <= ratio.max() <= high
    assert scheme.quantized_sum


@pytest.mark.parametrize("granularity", ["channel", "head"])
def test_zero_points_cover_values_that_are_far_from_zero_with_smaller_steps(granularity: str) -> None:
    """And are int8, also where zero is outside of the values."""
    keys, values = _keys(1), [x.abs() + 3 for x in _keys(2)]
    recipe = AttentionRecipe(kv_scale=granularity, center=False, equalize=False, rotate=False, zero_points=True)
    plain = recipe.model_copy(update={"zero_points": False})
    scheme, symmetric = (
        attention.calibrate(CONFIG, x, _queries(3), keys, values, v_folded=False) for x in (recipe, plain)
    )
    for offset in (scheme.k_offset, scheme.v_offset):
        assert (offset == offset.round()).all()
        assert offset.abs().max() <= 127
    rotated = torch.cat([hadamard(x, 16) for x in values])
    low, high = rotated.amin(0).clamp_max(0), rotated.amax(0).clamp_min(0)
    if granularity == "head":
        low, high = low.amin(-1, keepdim=True), high.amax(-1, keepdim=True)
    for end, steps in ((low, -128), (high, 127)):
        assert ((end / scheme.v_scale + scheme.v_offset - steps).abs() <= 1.5).all()
    # The first channel of a transformed head is its mean, which is never negative here.
    assert (scheme.v_scale[:, 0] < (0.55 if granularity == "channel" else 0.7) * symmetric.v_scale[:, 0]).all()
    assert (scheme.k_scale <= symmetric.k_scale).all()


def test_a_channel_that_never_varies_gets_a_usable_equalizer() -> None:
    keys = [torch.zeros(20, 2, 16)]
    keys[0][:, :, 0] = 1.0
    queries = [keys[0].repeat_interleave(3, dim=1)]
    scheme = attention.calibrate(CONFIG, AttentionRecipe(), queries, keys, keys, v_folded=True)
    assert (scheme.k_equalizer > 0).all()
    assert map_k(keys[0], scheme.at(0)).isfinite().all()
