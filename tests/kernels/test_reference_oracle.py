"""The reference kernel against the float64 oracle."""

import numpy as np
import pytest
import torch
from torch import Tensor

from faquant.kernels import quantizers
from faquant.kernels.scheme import P_LEVELS, AttentionScheme
from oracles import attention as oracle
from oracles.calibrated import KINDS, float64, make_scheme, random_qkv, run

LENGTHS = [1, 63, 64, 65, 127, 128, 129, 1000]
WINDOWS = [1, 5, 128, 200]


def expect(scheme: AttentionScheme, q: Tensor, k: Tensor, v: Tensor, start: int, window: int | None = None) -> Tensor:
    """The oracle's attention on the reference's integers, which other tests compare with the oracle's own."""
    integers = []
    for (values, step), static_heads in (
        (quantizers.quantize_q(q, scheme), scheme.num_heads),
        (quantizers.quantize_k(k, scheme), 0),
        (quantizers.quantize_v(v, scheme), 0),
    ):
        if static_heads and scheme.k_scale is not None and scheme.k_scale.shape[1] == 1:
            # The reference includes K's scale per head in q's; the oracle applies it separately.
            assert step is not None
            step = step / scheme.k_scale[:, 0].repeat_interleave(static_heads // scheme.num_kv_heads)
        ones = np.ones(values.shape[:2])
        integers.append(oracle.Quantized(float64(values), ones if step is None else float64(step)))
    return torch.from_numpy(oracle.attention(*integers, scheme, start, window))


def assert_same_but_ties(out: Tensor, expected: Tensor, v: Tensor, levels: int) -> None:
    """Equal within float32's noise, except that a P next to a half may round to the neighboring step."""
    reach = float(v.abs().max())
    error = (out.double() - expected).abs()
    assert error.max() <= 1.5 * reach / levels + 1e-5 * reach
    assert (error > 1e-5 * reach).double().mean() <= 0.05


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [16, 64, 80, 96, 128])
def test_the_integers_are_the_formulas(kind: str, dim: int) -> None:
    q, k, v = random_qkv(40, 40, 6, 2, dim)
    scheme = make_scheme(kind, q, k, v)
    for values, step, expected in (
        (*quantizers.quantize_k(k, scheme), oracle.quantized_k(float64(k), scheme)),
        (*quantizers.quantize_v(v, scheme), oracle.quantized_v(float64(v), scheme)),
        (quantizers.quantize_q(q, scheme)[0], None, oracle.quantized_q(float64(q), scheme)),
    ):
        difference = np.abs(float64(values) - expected.values)
        assert difference.max() <= 1
        assert difference.mean() <= 1e-3
        if step is not None:
            assert np.mean(float64(step) != expected.step) <= 0.01
            np.testing.assert_allclose(float64(step), expected.step, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", P_LEVELS.values())
@pytest.mark.parametrize(("group", "dim"), [(1, 64), (3, 16), (3, 80), (8, 96), (8, 128)])
def test_attention_is_the_oracle(kind: str, levels: int, group: int, dim: int) -> None:
    tokens, start, kv_heads = 5, 150, 2
    q, k, v = random_qkv(tokens, start + tokens, group * kv_heads, kv_heads, dim, seed=levels)
    for quantized_sum in (False,) if kind.startswith("token") else (False, True):
        scheme = make_scheme(kind, q, k, v, p_levels=levels, quantized_sum=quantized_sum)
        out = run(scheme, q, k, v, start)
        assert_same_but_ties(out, expect(scheme, q, k, v, start), v, levels)


@pytest.mark.parametrize("kind", ["token, centered", "channel, zero points", "q static"])
@pytest.mark.parametrize("length", LENGTHS)
def test_any_length(kind: str, length: int) -> None:
    q, k, v = random_qkv(min(length, 3), length, 6, 2, 16, seed=length)
    scheme = make_scheme(kind, q, k, v)
    start = length - len(q)
    assert_same_but_ties(run(scheme, q, k, v, start), expect(scheme, q, k, v, start), v, 32767)


@pytest.mark.parametrize("kind", ["token, centered", "channel, zero points"])
@pytest.mark.parametrize("start", [2047, 2300, 4096, 4200])
@pytest.mark.parametrize("window", [None, 100, 2100])
def test_several_splits(kind: str, start: int, window: int | None) -> None:
    q, k, v = random_qkv(2, start + 2, 3, 1, 16, seed=start)
    scheme = make_scheme(kind, q, k, v)
    assert_same_but_ties(run(scheme, q, k, v, start, window), expect(scheme, q, k, v, start, window), v, 32767)


@pytest.mark.parametrize("kind", ["token, centered", "channel, zero points"])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("start", [0, 120, 300])
def test_windows_within_a_tile_and_across_tiles(kind: str, window: int, start: int) -> None:
    q, k, v = random_qkv(20, start + 20, 3, 1, 16, seed=start)
    scheme = make_scheme(kind, q, k, v)
    assert_same_but_ties(run(scheme, q, k, v, start, window), expect(scheme, q, k, v, start, window), v, 32767)


@pytest.mark.parametrize("kind", ["token", "channel"])
def test_a_scale_of_q_per_channel_is_a_grid_before_folding(kind: str) -> None:
    q, k, v = random_qkv(6, 90, 6, 2, 64)
    q_scale = quantizers.map_q(q, make_scheme(kind.replace("channel", "token, centered"), q, k, v)).abs().amax(0) / 100
    scheme = make_scheme(kind, q, k, v, q_scale=q_scale)
    difference = np.abs(float64(quantizers.quantize_q(q, scheme)[0]) - oracle.quantized_q(float64(q), scheme).values)
    assert difference.max() <= 1
    assert difference.mean() <= 1e-2
    assert_same_but_ties(run(scheme, q, k, v, 84), expect(scheme, q, k, v, 84), v, 32767)


def test_the_error_shrinks_with_better_schemes_and_more_bits_of_p() -> None:
    """Relative rms error against float attention; K has a channel far from zero, as in models with biases."""
    tokens, start = 40, 460
    q, k, v = random_qkv(tokens, start + tokens, 6, 2, 64)
    exact = torch.from_numpy(oracle.exact_attention(float64(q), float64(k), float64(v), start))

    def error(kind: str, levels: int) -> float:
        scheme = make_scheme(kind, q, k, v, p_levels=levels)
        return float((run(scheme, q, k, v, start).double() - exact).norm() / exact.norm())

    default = error("token, centered", 32767)
    assert default < 0.005
    assert default < error("token, centered", 255) < error("token, centered", 127) < 0.02
    assert 4 * default < error("token", 32767)
    assert error("channel", 32767) < 0.01
    assert error("channel", 32767) < error("head", 32767)
