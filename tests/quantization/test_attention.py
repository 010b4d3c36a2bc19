"""The calibration of K's centre, equaliser and scales over the positions of the context."""

import pytest
import torch

from faquant.config import parse_config
from faquant.kernels.reference import dequantize_k, map_k, quantize_k
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


def _moved(keys: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    """All keys moved by each distance, the plain way."""
    cos, sin = Rope(CONFIG).rotation(distances)
    return torch.cat([apply_rope(keys, c, s) for c, s in zip(cos, sin, strict=True)])


def _queries(seed: int) -> list[torch.Tensor]:
    return [x.repeat_interleave(3, dim=1) for x in _keys(seed)]


@pytest.mark.parametrize("center", [True, False])
def test_center_is_the_mean_and_equalizer_balances_k_and_q_over_the_context(center: bool) -> None:
    keys, queries = _keys(0), _queries(3)
    recipe = AttentionRecipe(center=center, positions=5)
    scheme = attention.calibrate(CONFIG, recipe, queries, keys, keys, v_folded=True)
    distances = attention._distances(5, 1000 - 30)
    moved_k, moved_q = _moved(torch.cat(keys), distances), _moved(torch.cat(queries), distances)
    expected_center = moved_k.mean(0) if center else torch.zeros(2, 16)
    if center:
        torch.testing.assert_close(scheme.k_center, expected_center, rtol=1e-4, atol=1e-5)
    else:
        assert scheme.k_center is None
    k_rms = (moved_k - expected_center).square().mean(0).sqrt()
    q_rms = moved_q.square().mean(0).view(2, 3, 16).mean(1).sqrt()
    torch.testing.assert_close(scheme.k_equalizer, (k_rms / q_rms).sqrt(), rtol=1e-3, atol=1e-5)


def test_the_equalizer_makes_the_scores_more_precise_where_q_and_k_differ_by_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = torch.logspace(-1, 1, 16)[torch.randperm(16, generator=generator)]
    q = torch.randn(400, 6, 16, generator=generator) / shape
    k = torch.randn(400, 2, 16, generator=generator) * shape
    errors = []
    for equalize in (False, True):
        recipe = AttentionRecipe(equalize=equalize, positions=0)
        scheme = attention.calibrate(CONFIG, recipe, [q], [k], [k], v_folded=True)
        k8, scale = quantize_k(k, scheme)
        cached = dequantize_k(k8, scale, scheme)
        scores, exact = (torch.einsum("qhd,khd->hqk", q[:, ::3], x) for x in (cached, k))
        # A shift that is the same for all keys of a row cancels in the softmax.
        difference = scores - exact
        errors.append(float((difference - difference.mean(-1, keepdim=True)).square().mean()))
    assert errors[1] < 0.2 * errors[0]


@pytest.mark.parametrize("granularity", ["channel", "head"])
def test_static_scales_cover_every_mapped_key_and_value_exactly(granularity: str) -> None:
    keys, values = _keys(1), _keys(2)
    recipe = AttentionRecipe(kv_scale=granularity, positions=5)
    scheme = attention.calibrate(CONFIG, recipe, _queries(3), keys, values, v_folded=False)
    distances = torch.cat((torch.tensor([0]), attention._distances(5, 1000 - 30)))
    peak = map_k(_moved(torch.cat(keys), distances), scheme).abs().amax(0)
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
    queries = [keys[0].repeat_interleave(3, dim=1)]
    scheme = attention.calibrate(CONFIG, AttentionRecipe(positions=0), queries, keys, keys, v_folded=True)
    assert (scheme.k_equalizer > 0).all()
    assert map_k(keys[0], scheme).isfinite().all()
