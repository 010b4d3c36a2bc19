"""Norm, RoPE and SwiGLU of the kernels: as in torch, with the same bits for any instruction set and number of
threads."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from faquant.kernels import _C, modules
from faquant.kernels import isa as cpu
from faquant.kernels.modules import RMSNorm
from faquant.kernels.torch_backend import TorchRMSNorm, rope
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
    outs = [modules.rms_norm(kernel, x, isa) for isa in ISAS]
    torch.testing.assert_close(outs[0].double(), exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(outs[0], TorchRMSNorm(weight, 1e-5, bias)(x), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_rms_norm_of_heads_and_of_zeros() -> None:
    x, norm = normal(3, 4, 20), RMSNorm(normal(20), 1e-6).kernel
    rows = modules.rms_norm(norm, x.view(12, 20))
    assert torch.equal(modules.rms_norm(norm, x).view(12, 20), rows)
    assert torch.equal(modules.rms_norm(norm, x.transpose(0, 1)), modules.rms_norm(norm, x).transpose(0, 1))
    assert not modules.rms_norm(norm, torch.zeros(2, 20)).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("tokens", "heads", "dim"), [(1, 1, 2), (5, 3, 12), (300, 9, 64), (7, 2, 80)])
def test_rope_has_the_bits_of_the_reference(isa: str, tokens: int, heads: int, dim: int) -> None:
    x, angle = normal(tokens, heads, dim), normal(tokens, 1, dim, seed=1) * 9
    expected = rope(x, angle.cos(), angle.sin())
    for threads in (1, 3):
        set_threads(threads)
        assert torch.equal(modules.rope(x.clone(), angle.cos(), angle.sin(), isa), expected)


def test_silu_is_accurate_everywhere() -> None:
    special = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38, torch.inf])
    gate = torch.cat((torch.linspace(-120, 120, 100_001), special))
    exact = torch.nn.functional.silu(gate.double())
    outs = [modules.silu_times(gate, torch.ones_like(gate), isa) for isa in ISAS]
    torch.testing.assert_close(outs[0].double(), exact, rtol=4e-7, atol=1e-36)
    assert all(torch.equal(out, outs[0]) for out in outs)
    up = normal(len(gate))
    assert torch.equal(modules.silu_times(gate[:-1], up[:-1]), outs[0][:-1] * up[:-1])
    assert modules.silu_times(torch.tensor([torch.nan]), torch.ones(1)).isnan().all()


def test_gelu_is_accurate_everywhere() -> None:
    special = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38, torch.inf])
    gate = torch.cat((torch.linspace(-12, 12, 100_001), special))
    x = gate.double()
    exact = x / (1 + torch.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    outs = [modules.gelu_times(gate, torch.ones_like(gate), isa) for isa in ISAS]
    torch.testing.assert_close(outs[0].double(), exact, rtol=2e-5, atol=1e-36)
    wanted = torch.nn.functional.gelu(gate, approximate="tanh")
    torch.testing.assert_close(outs[0][:-7], wanted[:-7], rtol=0, atol=1e-6)
    assert all(torch.equal(out, outs[0]) for out in outs)
    up = normal(len(gate))
    assert torch.equal(modules.gelu_times(gate[:-1], up[:-1]), outs[0][:-1] * up[:-1])
    assert modules.gelu_times(torch.tensor([torch.nan]), torch.ones(1)).isnan().all()


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "norm": lambda x: modules.RMSNorm(x[0, 0].copy() if isinstance(x, np.ndarray) else x[0, 0].clone(), 1e-5)(x),
    "rope": lambda x: modules.rope(x, x[:, :1], x[:, 1:2]),
    "silu_times": lambda x: modules.silu_times(x, x),
    "gelu_times": lambda x: modules.gelu_times(x, x),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[::2], lambda x: x[:, :, 3:9]], ids=["whole", "rows", "part"])
def test_arrays_of_numpy_give_the_bits_of_tensors_and_come_back_as_arrays(
    name: str, view: Callable[[Any], Any]
) -> None:
    """Contiguous arrays and others."""
    ours = OPERATIONS[name](view(normal(7, 4, 12).numpy()))
    tensor = OPERATIONS[name](view(normal(7, 4, 12)))
    assert (type(ours), type(tensor)) == (np.ndarray, Tensor)
    assert (ours.dtype, tensor.dtype) == (np.float32, torch.float32)
    assert np.array_equal(ours, tensor.numpy())


def test_rope_works_in_place_where_elements_lie_in_order() -> None:
    for x in (normal(3, 2, 8), normal(3, 2, 8).numpy()):
        assert modules.rope(x, x[:, :1], x[:, 1:]) is x


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.astype(np.float64),
        lambda x: x.astype(np.float16),
        lambda x: x.view(np.int32),
        lambda x: x.T,
        lambda x: x[::2],
        lambda x: x[:, :5],
        lambda x: x[None],
        lambda x: x[:3],
    ],
)
def test_a_wrong_dtype_shape_or_order_is_refused(wrong: Callable[[Any], Any]) -> None:
    """By the kernels themselves; their callers make arrays contiguous."""
    x = normal(8, 8).numpy()
    norm = _C.RmsNorm(weight=np.ones(8, np.float32), bias=None, eps=1e-5)
    silu_times: Callable[..., None] = _C.silu_times
    for kernel in (
        lambda given: norm.apply(given, x, 1, None),
        lambda given: norm.apply(x, given, 1, None),
        lambda given: silu_times(given, x, x, 1, None),
        lambda given: silu_times(x, given, x, 1, None),
        lambda given: silu_times(x, x, given, 1, None),
        lambda given: _C.rope(x[:, None], given[:, None], x[:, None], 1, None),
        lambda given: _C.rope(x[:, None], x[:, None], given[:, None], 1, None),
    ):
        kernel(x.copy())
        with pytest.raises(ValueError, match="must"):
            kernel(wrong(x.copy()))


@pytest.mark.parametrize("wrong", [[1.0], None, 3, np.ones(8, ">f4"), torch.ones(8, device="meta")])
def test_what_is_no_array_of_this_machine_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError):
        _C.RmsNorm(weight=wrong, bias=None, eps=1e-5)


def test_a_result_that_cannot_be_written_is_refused() -> None:
    x, out = normal(2, 8).numpy(), np.empty((2, 8), np.float32)
    out.flags.writeable = False
    with pytest.raises(TypeError):
        _C.silu_times(x, x, out, 1, None)
    with pytest.raises(TypeError):
        modules.rope(out[:, None], x[:, None], x[:, None])


def test_other_tensors_are_refused() -> None:
    x = normal(3, 8)
    norm = RMSNorm(normal(8), 1e-5)
    for wrong in (x.double(), normal(3, 7)):
        with pytest.raises(ValueError, match="x must be"):
            modules.rms_norm(norm.kernel, wrong)
    with pytest.raises(ValueError, match="weight must"):
        RMSNorm(normal(8).double(), 1e-5)
    with pytest.raises(ValueError, match="bias must"):
        RMSNorm(normal(8), 1e-5, normal(7))
    with pytest.raises(ValueError, match="cos must be"):
        modules.rope(normal(3, 2, 8), normal(2, 1, 8), normal(3, 1, 8))
    with pytest.raises(ValueError, match="up must be"):
        modules.silu_times(normal(3, 8), normal(3, 7))
