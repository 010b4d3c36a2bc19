"""Norm, RoPE and SwiGLU of the kernels: as torch's, with the same bits on every instruction set and any threads."""

import pytest
import torch
from torch import Tensor

from faquant.kernels import elementwise
from faquant.kernels import isa as cpu
from faquant.model.decoder import RMSNorm
from faquant.model.rope import apply_rope
from oracles.threads import set_threads

ISAS = cpu.available_isas()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 7, 16, 33, 576, 8192])
@pytest.mark.parametrize("biased", [False, True])
def test_rms_norm(size: int, biased: bool) -> None:
    x, weight = normal(5, size) * 3, 1 + normal(size, seed=1)
    bias = normal(size, seed=2) if biased else None
    exact = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    exact = exact if bias is None else exact + bias.double()
    kernel = RMSNorm(weight, 1e-5, bias).kernel
    outs = [elementwise.rms_norm(kernel, x, isa) for isa in ISAS]
    torch.testing.assert_close(outs[0].double(), exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(outs[0], RMSNorm(weight, 1e-5, bias)(x), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_rms_norm_of_heads_and_of_zeros() -> None:
    x, norm = normal(3, 4, 20), RMSNorm(normal(20), 1e-6).kernel
    rows = elementwise.rms_norm(norm, x.view(12, 20))
    assert torch.equal(elementwise.rms_norm(norm, x).view(12, 20), rows)
    assert torch.equal(elementwise.rms_norm(norm, x.transpose(0, 1)), elementwise.rms_norm(norm, x).transpose(0, 1))
    assert not elementwise.rms_norm(norm, torch.zeros(2, 20)).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("tokens", "heads", "dim"), [(1, 1, 2), (5, 3, 12), (300, 9, 64), (7, 2, 80)])
def test_rope_has_the_bits_of_the_reference(isa: str, tokens: int, heads: int, dim: int) -> None:
    x, angle = normal(tokens, heads, dim), normal(tokens, 1, dim, seed=1) * 9
    expected = apply_rope(x, angle.cos(), angle.sin())
    for threads in (1, 3):
        set_threads(threads)
        assert torch.equal(elementwise.rope(x.clone(), angle.cos(), angle.sin(), isa), expected)


def test_silu_is_accurate_everywhere() -> None:
    special = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38, torch.inf])
    gate = torch.cat((torch.linspace(-120, 120, 100_001), special))
    exact = torch.nn.functional.silu(gate.double())
    outs = [elementwise.silu_times(gate, torch.ones_like(gate), isa) for isa in ISAS]
    torch.testing.assert_close(outs[0].double(), exact, rtol=4e-7, atol=1e-36)
    assert all(torch.equal(out, outs[0]) for out in outs)
    up = normal(len(gate))
    assert torch.equal(elementwise.silu_times(gate[:-1], up[:-1]), outs[0][:-1] * up[:-1])
    assert elementwise.silu_times(torch.tensor([torch.nan]), torch.ones(1)).isnan().all()


def test_other_tensors_are_refused() -> None:
    x = normal(3, 8)
    norm = RMSNorm(normal(8), 1e-5)
    for wrong in (x.double(), normal(3, 7)):
        with pytest.raises(ValueError, match="x must be"):
            elementwise.rms_norm(norm.kernel, wrong)
    with pytest.raises(ValueError, match="weight must"):
        _ = RMSNorm(normal(8).double(), 1e-5).kernel
    with pytest.raises(ValueError, match="bias must"):
        _ = RMSNorm(normal(8), 1e-5, normal(7)).kernel
    with pytest.raises(ValueError, match="cos must be"):
        elementwise.rope(normal(3, 2, 8), normal(2, 1, 8), normal(3, 1, 8))
    with pytest.raises(ValueError, match="gate must be"):
        elementwise.silu_times(normal(3, 8), normal(3, 7))
