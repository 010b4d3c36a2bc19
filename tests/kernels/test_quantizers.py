"""Row quantizers, the Hadamard transform and integer products are exact, or round as little as possible."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faquant.kernels import quantizers
from oracles import attention as oracle


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("block", [2**i for i in range(10)])
def test_hadamard_is_sylvesters_matrix(block: int) -> None:
    matrix = torch.from_numpy(oracle.sylvester(block))
    torch.testing.assert_close(matrix @ matrix, torch.eye(block, dtype=torch.float64), rtol=0, atol=1e-12)
    x = torch.randn(5, 3 * block, generator=torch.Generator().manual_seed(block))
    expected = (x.double().view(5, 3, block) @ matrix).view(5, 3 * block)
    out = quantizers.hadamard(x, block)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(quantizers.hadamard(out, block), x, rtol=0, atol=4e-6)
    torch.testing.assert_close(quantizers.hadamard(torch.eye(block), block).double(), matrix, rtol=0, atol=1e-7)
    assert same_bits(quantizers.hadamard(x[2:3], block), out[2:3])


@settings(max_examples=200, derandomize=True)
@given(
    st.lists(st.floats(-(2.0**40), 2.0**40, width=32), min_size=1, max_size=8),
    st.sampled_from([1.0, 1e-8, 1e-38, 1e-3]),
)
def test_fp16_scales_are_rounded_up_by_one_step_at_most(values: list[float], size: float) -> None:
    x = torch.tensor(values, dtype=torch.float32) * size
    x8, scale = quantizers.quantize_rows_fp16(x[None])
    exact = (x.abs().max() / 127).item()
    got = float(scale)
    assert got > 0
    if exact > 65504:
        assert got == 65504
    else:
        assert got >= exact
        below = float(np.nextafter(np.float16(got), np.float16(0)))
        assert below < exact or got == 2.0**-24
        # Nothing is clipped; the only error is rounding.
        assert float((x / got).abs().max()) < 127.5
        assert float((x8.float() * got - x).abs().max()) <= got * 0.5001


@settings(max_examples=100, derandomize=True)
@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=8))
def test_quantize_rows_reaches_the_last_step_and_loses_half_a_step(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    for steps, dtype in ((127.0, torch.int8), (32639.0, torch.int16)):
        integers, scale = quantizers.quantize_rows(x[None], steps)
        assert integers.dtype == dtype
        assert scale.isfinite().all()
        # The division rounds to 24 bits, of which 15 are the integer's.
        assert float((integers * scale.double() - x.double()).abs().max()) <= float(scale) * 0.504
        if float(x.abs().max()) > 1e-29:
            assert int(integers.abs().max()) == int(steps)


@settings(max_examples=100, derandomize=True)
@given(st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=1, max_size=8))
def test_quantize_rows_asymmetric_uses_256_steps_and_loses_one_at_most(values: list[float]) -> None:
    """Half a step everywhere but at the greatest value, if two halves were rounded up."""
    x = torch.tensor(values, dtype=torch.float32)
    integers, scale, zero = quantizers.quantize_rows_asymmetric(x[None])
    steps = integers.short() - zero[:, None]
    lost = (steps * scale.double() - x.double()).abs() / scale
    assert float(lost.max()) <= 1.001
    assert float(lost[(integers < 127)].max() if (integers < 127).any() else 0) <= 0.5001
    assert bool((steps[x[None] == 0] == 0).all())
    if float(x.abs().max()) > 1e-29:
        assert int(max(integers.max(), zero)) - int(min(integers.min(), zero)) >= 254


def test_products_of_16_bits_are_exact() -> None:
    """Up to the largest sums of the longest rows."""
    rng = np.random.default_rng(0)
    x, weight = rng.integers(-32639, 32640, (3, 65536), np.int16), rng.integers(-128, 128, (5, 65536), np.int8)
    x[0], weight[0], weight[1] = -32639, -128, 127
    expected = x.astype(np.int64) @ weight.astype(np.int64).T
    out = quantizers.int16_matmul(torch.from_numpy(x), torch.from_numpy(weight))
    assert out.dtype == torch.float64
    np.testing.assert_array_equal(out.numpy(), expected)


@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize("depth", [1, 64, 576, 1024, 1025, 28672])
def test_int8_products_are_exact(rows: int, depth: int) -> None:
    rng = np.random.default_rng(depth)
    x, weight = (rng.integers(-128, 128, (n, depth), np.int8) for n in (rows, 24))
    x[0], weight[0], weight[1] = -128, -128, 127
    expected = x.astype(np.int64) @ weight.astype(np.int64).T
    out = quantizers.int8_matmul(torch.from_numpy(x), torch.from_numpy(weight))
    assert out.dtype == torch.int32
    np.testing.assert_array_equal(out.numpy(), expected)
