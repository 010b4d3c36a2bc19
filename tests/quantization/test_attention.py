"""The calibration of K's centre, equaliser and scales over the positions of the context."""

import pytest
import torch

from faquant.config import parse_config
from faquant.kernels.reference import map_k
from faquant.model.rope import Rope, apply_rope
from faquant.quantization import attention
from faquant.recipe import AttentionRecipe

CONFIG = parse_config(
    {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 96,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1000,
    }
)


def _keys(seed: int, lengths: tuple[int, ...] = (30, 7)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(2, 16, generator=generator) * 5
    return [torch.randn(length, 2, 16, generator=generator) * scale + scale for length in lengths]


def _moved(keys: torch.Tensor, positions: int) -> torch.Tensor:
    """All keys at all calibrated positions, the plain way."""
    distances = attention._distances(positions, 1000 - 30)
    cos, sin = Rope(CONFIG).rotation(distances)
    return torch.cat([keys, *(apply_rope(keys, c, s) for c, s in zip(cos, sin, strict=True))])


@pytest.mark.parametrize("center", [True, False])
def test_center_and_equalizer_span_what_the_keys_reach_anywhere(center: bool) -> None:
    keys = _keys(0)
    recipe = AttentionRecipe(center=center, positions=5)
    scheme = attention.calibrate(CONFIG, recipe, keys, keys, v_folded=True)
    moved = _moved(torch.cat(keys), 5)
    low, high = moved.amin(0), moved.amax(0)
    if center:
        torch.testing.assert_close(scheme.k_center, (low + high) / 2)
        torch.testing.assert_close(scheme.k_equalizer, (high - low) / 2)
    else:
        assert scheme.k_center is None
        torch.testing.assert_close(scheme.k_equalizer, torch.maximum(high, -low))


@pytest.mark.parametrize("granularity", ["channel", "head"])
def test_static_scales_cover_every_mapped_key_and_value_exactly(granularity: str) -> None:
    keys, values = _keys(1), _keys(2)
    recipe = AttentionRecipe(kv_scale=granularity, positions=5)
    scheme = attention.calibrate(CONFIG, recipe, keys, values, v_folded=False)
    peak = map_k(_moved(torch.cat(keys), 5), scheme).abs().amax(0)
    if granularity == "head":
        peak = peak.amax(-1, keepdim=True)
    torch.testing.assert_close(scheme.k_scale, peak / 127, rtol=1e-4, atol=0)
    assert scheme.v_scale.shape == peak.shape
    assert scheme.quantized_sum


def test_the_last_position_of_the_context_is_among_those_calibrated() -> None:
    distances = attention._distances(64, 970)
    assert distances[-1] == 970
    assert len(distances.unique()) == 64
    assert distances.diff().max() < 40


def test_a_prompt_as_long_as_the_context_is_not_moved_beyond_it() -> None:
    assert attention._distances(4, -3).tolist() == [0, 0, 0, 0]


def test_a_channel_that_never_varies_gets_a_usable_equalizer() -> None:
    keys = [torch.zeros(20, 2, 16)]
    keys[0][:, :, 0] = 1.0
    scheme = attention.calibrate(CONFIG, AttentionRecipe(positions=0), keys, keys, v_folded=True)
    assert (scheme.k_equalizer > 0).all()
    assert map_k(keys[0], scheme).isfinite().all()
