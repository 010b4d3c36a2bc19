"""Float linears have the bits of the C++ kernels: fused multiply-adds, inputs in ascending order."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from faquant.kernels import modules
from faquant.kernels.cuda.float_linear import BlockedWeight, float_linear
from oracles.exact_fma import exact_fma, use_in_interpreter

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    use_in_interpreter(monkeypatch)


def by_cpu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """modules.FloatLinear, the C++ kernel."""
    stored = weight.view(torch.int16).numpy().view(np.uint16) if weight.dtype == torch.bfloat16 else weight.numpy()
    linear = modules.FloatLinear(stored, None if bias is None else bias.numpy())
    return torch.from_numpy(np.array(linear(x.numpy())))


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize(
    ("tokens", "n", "k", "dtype", "with_bias"),
    [
        (1, 300, 200, torch.bfloat16, True),
        (2, 130, 64, torch.float32, True),
        (8, 129, 80, torch.float16, False),
        (17, 270, 144, torch.bfloat16, False),
        (35, 100, 60, torch.float32, True),
    ],
)
def test_bits_of_the_cpu(tokens: int, n: int, k: int, dtype: torch.dtype, with_bias: bool) -> None:
    x = torch.randn(tokens, k) * torch.logspace(-3, 3, k)
    weight, bias = torch.randn(n, k).to(dtype), torch.randn(n) if with_bias else None
    assert same_bits(float_linear(x, BlockedWeight.of(weight), bias), by_cpu(x, weight, bias))


def test_a_row_has_its_bits_in_any_batch() -> None:
    x, weight = torch.randn(18, 64), BlockedWeight.of(torch.randn(140, 64).bfloat16())
    together = float_linear(x, weight)
    for some in (slice(0, 1), slice(3, 6), slice(17, 18)):
        assert same_bits(float_linear(x[some].contiguous(), weight), together[some])


def test_nothing_outside_is_read_or_written() -> None:
    padded = torch.full((5, 48), float("nan"))
    x = padded[1:4]
    x.copy_(torch.randn(3, 48))
    weight, out = torch.randn(140, 48), torch.full((5, 140), 5.0)
    float_linear(x, BlockedWeight.of(weight), out=out[1:4])
    assert same_bits(out[1:4], by_cpu(x, weight, None))
    assert out[[0, -1]].eq(5).all()


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="the weight has 64 inputs, not 48"):
        float_linear(torch.ones(1, 48), BlockedWeight.of(torch.ones(16, 64)))
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        BlockedWeight.of(torch.ones(16, 64, dtype=torch.float64))


def test_the_fma_of_these_tests_rounds_once() -> None:
    """Compared with rational numbers: on random ones, and on sums so close to a half of a unit that float64 rounds them
    to it."""
    generator = np.random.default_rng(7)
    x, y, z = generator.standard_normal((3, 1000)).astype(np.float32)
    small = np.float32(2.0**-23) * generator.integers(1, 2000, 1000).astype(np.float32)
    odd = 1 + np.float32(2.0**-23) * (2 * generator.integers(0, 1000, 1000).astype(np.float32) + 1)
    sign = generator.choice(np.float32([-1, 1]), 1000)
    x, y = np.append(x, sign * np.float32(2.0**-24) * (1 + small)), np.append(y, 1 - small)
    z = np.append(z, sign * odd)
    for a, b, c, found in zip(x, y, z, exact_fma(x, y, z), strict=True):
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        neighbors = [np.nextafter(found, np.float32(side)) for side in (-np.inf, np.inf)]
        distance = abs(Fraction(float(found)) - exact)
        assert all(distance < abs(Fraction(float(other)) - exact) for other in neighbors)
