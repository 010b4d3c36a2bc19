"""RMSNorm, RoPE and silu(gate) · up have the bits of the C++ kernels."""

import math

import pytest
import torch
from torch import Tensor

from faquant.kernels import modules
from faquant.kernels.cuda import elementwise

pytestmark = pytest.mark.cuda


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.mark.parametrize("size", [1, 7, 33, 128, 576, 1024, 2055, 4096])
@pytest.mark.parametrize("biased", [False, True])
def test_rms_norm(size: int, biased: bool) -> None:
    """Rows of different magnitudes, in a part of a buffer with NaN around it, also in place."""
    torch.manual_seed(size)
    buffer = torch.full((3, size + 8), math.nan)
    x = buffer[:, 4:-4]
    x.copy_(torch.randn(3, size) * torch.tensor([1e-6, 1.0, 1e5])[:, None])
    weight, bias = torch.randn(size), torch.randn(size) if biased else None
    expected = modules.RMSNorm(weight, 1e-5, bias)(x)
    assert same_bits(elementwise.rms_norm(x, weight, 1e-5, bias), expected)
    assert elementwise.rms_norm(x, weight, 1e-5, bias, out=x) is x
    assert same_bits(x, expected)
    assert buffer[:, :4].isnan().all()
    assert buffer[:, -4:].isnan().all()


def test_rms_norm_of_heads_in_place() -> None:
    x, weight = torch.randn(3, 4, 20), torch.randn(20)
    x[1, 2] = 0.0
    expected = modules.RMSNorm(weight, 1e-6)(x)
    assert elementwise.rms_norm(x, weight, 1e-6, out=x) is x
    assert same_bits(x, expected)


@pytest.mark.parametrize(("tokens", "heads", "dim"), [(1, 1, 2), (3, 20, 128), (2, 3, 80), (2, 5, 256)])
def test_rope(tokens: int, heads: int, dim: int) -> None:
    """In place, in a part of a buffer; the rest keeps its bits."""
    torch.manual_seed(dim)
    buffer = torch.randn(tokens, heads + 2, dim)
    before = buffer.clone()
    angle = torch.randn(tokens, 1, dim) * 9
    x = buffer[:, 1:-1]
    assert elementwise.rope(x, angle.cos(), angle.sin()) is x
    expected = modules.rope(before[:, 1:-1].contiguous(), angle.cos(), angle.sin())
    assert same_bits(x, expected)
    assert same_bits(buffer[:, 0], before[:, 0])
    assert same_bits(buffer[:, -1], before[:, -1])


def test_rope_of_zeros_keeps_their_signs() -> None:
    x = torch.tensor([0.0, -0.0, 0.0, -0.0]).repeat(4, 1)[None]
    x[0, 1:, 2:] *= -1
    table = torch.tensor([[[-1.0, 1.0, 1.0, -1.0]]])
    expected = modules.rope(x.clone(), table, -table)
    assert same_bits(elementwise.rope(x, table, -table), expected)


def test_silu_and_gelu_times() -> None:
    """Two parts of one buffer, with numbers of every size."""
    special = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38, math.inf, math.nan, 88.0, -88.0])
    size = 1003
    buffer = torch.randn(3, 2 * size)
    gate, up = buffer[:, :size], buffer[:, size:]
    gate[0] = torch.linspace(-120, 120, size)
    gate[1, : len(special)] = special
    assert same_bits(elementwise.silu_times(gate, up), modules.silu_times(gate, up))
    assert same_bits(elementwise.gelu_times(gate, up), modules.gelu_times(gate, up))
