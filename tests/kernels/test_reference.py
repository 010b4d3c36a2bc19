"""The reference kernel against the float64 oracle, and its properties."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faquant.kernels import quantizers, reference
from faquant.kernels.scheme import AttentionScheme
from oracles import attention as oracle
from oracles.threads import set_threads

KINDS = ["token", "token, centered", "head", "channel", "channel, zero points", "q static"]
LENGTHS = [1, 63, 64, 65, 127, 128, 129, 1000]
WINDOWS = [1, 5, 128, 200]


def block_of(dim: int) -> int:
    return dim & -dim


def random_qkv(
    tokens: int, length: int, heads: int, kv_heads: int, dim: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """q of the last tokens, k with a few channels far from zero, v."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(tokens, heads, dim, generator=generator)
    k = torch.randn(length, kv_heads, dim, generator=generator)
    k[:, :, 1] = k[:, :, 1] * 3 + 20
    v = torch.randn(length, kv_heads, dim, generator=generator) + 0.5
    return q, k, v


def make_scheme(kind: str, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> AttentionScheme:
    """A scheme of this kind, calibrated on k and v, with slight clipping."""
    more["p_float16"] = more.get("p_levels") == 127
    _, heads, dim = q.shape
    kv_heads = k.shape[1]
    base: dict[str, Any] = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": dim}
    if kind != "token":
        base["rotation_block"] = block_of(dim)
    if kind in ("token, centered", "channel", "channel, zero points"):
        base["k_center"] = k.mean(0)
        base["k_equalizer"] = (k - k.mean(0)).abs().amax(0) + 0.1
        base["rotation_sign"] = torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat(dim)[:dim]
    if kind.startswith("token"):
        return AttentionScheme(**base, **more)
    mapped = quantizers.map_k(k, AttentionScheme(**base))
    if kind == "channel, zero points":
        # Zero points of K on purpose, although the center makes them unnecessary.
        for part, x in (("k", mapped + 0.3), ("v", v)):
            low, high = x.amin(0), x.amax(0)
            base[f"{part}_scale"] = (high - low).clamp_min(0.1) / 250
            base[f"{part}_offset"] = (-(low + high) / 2 / base[f"{part}_scale"]).round().clamp(-100, 100)
    else:
        over = (0, 2) if kind in ("head", "q static") else (0,)
        for part, x in (("k", mapped), ("v", v)):
            base[f"{part}_scale"] = (x.abs().amax(over, keepdim=True)[0].clamp_min(0.1) / 127).expand(kv_heads, -1)
    if kind == "q static":
        base["q_scale"] = quantizers.map_q(q, AttentionScheme(**base)).abs().amax((0, 2))[:, None] / 120
    return AttentionScheme(**base, **more)


def run(scheme: AttentionScheme, q: Tensor, k: Tensor, v: Tensor, start: int, window: int | None = None) -> Tensor:
    k8, k_scale = quantizers.quantize_k(k, scheme)
    v8, v_scale = quantizers.quantize_v(v, scheme)
    return reference.attend(q, k8, v8, k_scale, v_scale, scheme, start, window)


def float64(x: Tensor) -> np.ndarray:
    return x.numpy().astype(np.float64)


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


# Against the oracle


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
@pytest.mark.parametrize("levels", [127, 255, 32767])
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


# Properties of a row: nothing next to it, after it or before its window matters


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, derandomize=True)
@given(cuts=st.lists(st.integers(1, 299), max_size=4), window=st.sampled_from([None, 1, 70, 200]))
def test_a_row_has_the_same_bits_in_any_chunk(kind: str, cuts: list[int], window: int | None) -> None:
    q, k, v = random_qkv(300, 300, 3, 1, 16)
    scheme = make_scheme(kind, q, k, v)
    whole = run(scheme, q, k, v, 0, window)
    ends = sorted({*cuts, 300})
    for start, end in zip([0, *ends], ends, strict=False):
        part = run(scheme, q[start:end], k[:end], v[:end], start, window)
        assert same_bits(part, whole[start:end])


@pytest.mark.parametrize("window", [None, 2060])
def test_a_row_has_the_same_bits_in_any_chunk_across_splits(window: int | None) -> None:
    start = 2040
    q, k, v = random_qkv(60, start + 60, 3, 1, 16)
    scheme = make_scheme("token, centered", q, k, v)
    whole = run(scheme, q, k, v, start, window)
    for row in (0, 7, 8, 9, 59):
        assert same_bits(run(scheme, q[row : row + 1], k, v, start + row, window), whole[row : row + 1])


@pytest.mark.parametrize("kind", ["token", "channel, zero points"])
def test_threads_and_block_sizes_change_no_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = random_qkv(333, 333, 9, 3, 64)
    scheme = make_scheme(kind, q, k, v)
    expected = run(scheme, q, k, v, 0)
    for threads, rows, batch in ((2, 256, 2**18), (3, 7, 1), (1, 100, 2**22)):
        set_threads(threads)
        monkeypatch.setattr(reference, "_ROWS", rows)
        monkeypatch.setattr(reference, "_BATCH", batch)
        assert same_bits(run(scheme, q, k, v, 0), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [None, 30])
def test_what_no_query_sees_may_be_poison(kind: str, window: int | None) -> None:
    tokens, start, length = 10, 190, 300
    q, k, v = random_qkv(tokens, length, 3, 1, 16)
    scheme = make_scheme(kind, q, k, v)
    k8, k_scale = quantizers.quantize_k(k, scheme)
    v8, v_scale = quantizers.quantize_v(v, scheme)
    expected = reference.attend(q, k8, v8, k_scale, v_scale, scheme, start, window)
    unseen = torch.ones(length, dtype=torch.bool)
    unseen[0 if window is None else start - window + 1 : start + tokens] = False
    for values in (k8, v8):
        values[unseen] = 0x7F
    for scales in (k_scale, v_scale):
        if scales is not None:
            scales[unseen] = math.nan
    assert same_bits(reference.attend(q, k8, v8, k_scale, v_scale, scheme, start, window), expected)


def test_exp2_has_the_same_bits_alone_and_in_a_row() -> None:
    x = torch.cat((-torch.logspace(-8, 2.2, 3000), torch.tensor([-0.0, -0.5, -1.5, -126.5, -127.0, -math.inf])))
    together = reference.exp2(x)
    alone = torch.cat([reference.exp2(x[i : i + 1]) for i in range(len(x))])
    assert same_bits(together, alone)
    normal = x > -126
    exact = torch.exp2(x.double())
    assert ((together.double() - exact).abs() / exact)[normal].max() < 2e-7
    assert together[-6:].tolist()[0] == 1.0
    assert together[-1] == 0.0
    assert together.max() == 1.0
    assert x[-1] == -math.inf  # the argument is not modified


# Invariances


@pytest.mark.parametrize("kind", KINDS)
def test_a_center_of_k_cancels(kind: str) -> None:
    """The same integers with another center result in the same attention, bit for bit: c·q cancels in the softmax."""
    q, k, v = random_qkv(5, 100, 6, 2, 16)
    scheme = make_scheme(kind, q, k, v)
    shift = torch.linspace(-30, 30, 32).view(2, 16)
    center = shift if scheme.k_center is None else scheme.k_center + shift
    moved = AttentionScheme(**{**scheme.__dict__, "k_center": center})
    k8, k_scale = quantizers.quantize_k(k, scheme)
    v8, v_scale = quantizers.quantize_v(v, scheme)
    args = (q, k8, v8, k_scale, v_scale)
    assert same_bits(reference.attend(*args, moved, 95), reference.attend(*args, scheme, 95))


def test_a_constant_in_all_keys_changes_nothing_where_the_center_follows() -> None:
    q, k, v = random_qkv(5, 100, 6, 2, 16)
    k = (k * 256).round() / 256
    shift = torch.arange(32.0).view(2, 16) * 4
    center = torch.zeros(2, 16)
    here = AttentionScheme(6, 2, 16, k_center=center, rotation_block=16)
    there = AttentionScheme(6, 2, 16, k_center=center + shift, rotation_block=16)
    assert same_bits(run(here, q, k, v, 95), run(there, q, k + shift, v, 95))


@pytest.mark.parametrize("shape", ["head", "channel"])
def test_a_zero_point_of_k_cancels(shape: str) -> None:
    q, k, v = random_qkv(5, 100, 6, 2, 16)
    k[:, :, 1] -= 20
    scale = k.abs().amax((0, 2) if shape == "head" else 0).view(2, -1) / 100
    plain = AttentionScheme(6, 2, 16, k_scale=scale, v_scale=torch.full((2, 1), 0.1))
    offset = torch.arange(-16.0, 16.0).view(2, 16) if shape == "channel" else torch.tensor([[-20.0], [20.0]])
    shifted = AttentionScheme(**{**plain.__dict__, "k_offset": offset})
    # The row's maximum moves, so the floats do in their last bits.
    torch.testing.assert_close(run(shifted, q, k, v, 95), run(plain, q, k, v, 95), rtol=0, atol=3e-4)


@pytest.mark.parametrize("levels", [255, 32767])
def test_a_zero_point_of_v_comes_out_by_the_sum_of_the_quantized_p(levels: int) -> None:
    """Constant values far from zero are exact for any P: there is no bias from the unquantized sum."""
    q, k, _ = random_qkv(5, 100, 6, 2, 16)
    k[:, :, 1] -= 20
    v = torch.full((100, 2, 16), 7.0)
    scheme = AttentionScheme(
        num_heads=6,
        num_kv_heads=2,
        head_dim=16,
        k_scale=torch.full((2, 1), 0.1),
        v_scale=torch.full((2, 16), 0.01),
        v_offset=torch.full((2, 1), -700.0),
        p_levels=levels,
        quantized_sum=True,
    )
    torch.testing.assert_close(run(scheme, q, k, v, 95), torch.full((5, 6, 16), 7.0), rtol=1e-6, atol=0)
    moved = v + torch.linspace(-1, 1, 100)[:, None, None]
    exact = oracle.exact_attention(float64(q), float64(k), float64(moved), 95)
    torch.testing.assert_close(run(scheme, q, k, moved, 95).double(), torch.from_numpy(exact), rtol=0, atol=0.03)
    biased = AttentionScheme(**{**scheme.__dict__, "quantized_sum": False, "p_levels": 127, "p_float16": True})
    assert (run(biased, q, k, v, 95) - 7.0).abs().max() > 1e-3


@pytest.mark.parametrize("dim", [64, 80])
def test_v_rotated_at_run_time_is_rotated_back(dim: int) -> None:
    q, k, v = random_qkv(70, 70, 3, 1, dim)
    v[:, :, 3] *= 30.0
    plain = make_scheme("token, centered", q, k, v)
    rotating = replace(plain, v_rotation_block=block_of(dim))
    expected = expect_float(q, k, v)
    errors = [float((run(scheme, q, k, v, 0) - expected).pow(2).mean()) for scheme in (plain, rotating)]
    # One channel's outlier costs all others their precision, unless the rotation spreads it.
    assert errors[1] < 0.5 * errors[0]


def expect_float(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1).transpose(0, 1) for x in (k, v))
    return torch.nn.functional.scaled_dot_product_attention(q.transpose(0, 1), k, v, is_causal=True).transpose(0, 1)


def test_uniform_scores_average_the_values() -> None:
    q, k, v = random_qkv(1, 200, 3, 1, 16)
    for keys in (torch.zeros_like(k), k[:1].expand_as(k)):
        out = run(make_scheme("token", q, keys, v), q, keys, v, 199)
        torch.testing.assert_close(out, v.mean(0).expand(1, 3, 16), rtol=0, atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_give_zeros(kind: str) -> None:
    q, k, v = random_qkv(3, 140, 3, 1, 16)
    scheme = make_scheme(kind, q, k, v, quantized_sum=not kind.startswith("token"))
    if kind == "channel, zero points":
        assert run(scheme, q, k * 0, v * 0, 137).abs().max() <= float(scheme.v_scale.max()) / 2  # type: ignore[union-attr]
    else:
        assert run(scheme, q * 0, k * 0, v * 0, 137).abs().max() == 0


def test_a_dominating_key_gives_its_value_exactly() -> None:
    q = torch.zeros(1, 3, 16)
    q[..., 0] = 100.0
    _, k, v = random_qkv(1, 300, 3, 1, 16)
    k[...] = 0.0
    k[17, :, 0] = 400.0  # a score of 1e4
    scheme = AttentionScheme(3, 1, 16)
    v8, v_scale = quantizers.quantize_v(v, scheme)
    expected = quantizers.dequantize_v(v8, v_scale, scheme)[17].expand(3, 16)
    torch.testing.assert_close(run(scheme, q, k, v, 299)[0], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0.0, 1e-8, 1.0, 1e4, 6e4 * 127, 1e8])
@pytest.mark.parametrize("outlier", [1.0, 1e4])
def test_finite_values_of_any_size_give_finite_results(kind: str, size: float, outlier: float) -> None:
    q, k, v = random_qkv(4, 150, 3, 1, 16)
    scheme = make_scheme(kind, q, k, v)
    k, v = k * size, v * size
    k[77] *= outlier
    out = run(scheme, q, k, v, 146)
    assert out.isfinite().all()
    # A convex combination of the values in the cache.
    v8, v_scale = quantizers.quantize_v(v, scheme)
    held = quantizers.dequantize_v(v8, v_scale, scheme).abs().max()
    slack = 2.0 if scheme.v_offset is not None else 1.001
    assert out.abs().max() <= held * slack


# The pieces


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [64, 80])
def test_the_maps_keep_the_products_and_unmap_inverts(kind: str, dim: int) -> None:
    q, k, v = random_qkv(30, 30, 4, 2, dim)
    scheme = make_scheme(kind, q, k, v)
    mapped = quantizers.map_k(k, scheme)
    torch.testing.assert_close(quantizers.unmap_k(mapped, scheme), k, rtol=1e-5, atol=2e-5)
    if scheme.k_scale is not None and scheme.k_scale.shape[1] > 1:
        mapped = mapped / scheme.k_scale
    centered = k if scheme.k_center is None else k - scheme.k_center
    for head in range(4):
        expected = q[:, head].double() @ centered[:, head // 2].double().T
        product = quantizers.map_q(q, scheme)[:, head].double() @ mapped[:, head // 2].double().T
        torch.testing.assert_close(product, expected, rtol=0, atol=1e-4)
