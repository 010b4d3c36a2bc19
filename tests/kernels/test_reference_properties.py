"""Properties of the reference kernel: what changes no bit of a row, and what cancels."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faquant.kernels import quantizers, reference
from faquant.kernels.scheme import AttentionScheme
from oracles import attention as oracle
from oracles.calibrated import KINDS, block_of, float64, make_scheme, random_qkv, run
from oracles.threads import set_threads

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
