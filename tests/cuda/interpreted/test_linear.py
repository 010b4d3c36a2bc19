"""int8 linears have the bits of the reference, however their tiles and parts of K are chosen."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from faquant.kernels import quantizers, reference
from faquant.kernels.cpu import CpuBackend
from faquant.kernels.cuda import linear, modules
from faquant.kernels.cuda.linear import SplitSums, int8_linear, tiling_of
from faquant.kernels.cuda.rounding import InputRounding, RoundedInputs, round_inputs
from faquant.kernels.tables import ASYMMETRIC_INPUT_STEPS, WIDE_INPUT_STEPS, DynamicTable, StaticTable

pytestmark = pytest.mark.cuda


def weight_of(n: int, k: int) -> Tensor:
    weight = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    weight[0] = -128
    return weight


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def inputs_of(tokens: int, k: int) -> Tensor:
    return torch.randn(tokens, k) * torch.logspace(-3, 3, tokens)[:, None]


@pytest.mark.parametrize(
    ("tokens", "n", "k"),
    [
        (1, 64, 256),
        (1, 80, 1536),
        (2, 16, 80),
        (8, 144, 576),
        (17, 64, 1024),
        (64, 96, 576),
        (33, 16400, 16),
        (65, 160, 640),
        (200, 144, 592),
    ],
)
def test_scale_per_token(tokens: int, n: int, k: int) -> None:
    x, weight, scale, bias = inputs_of(tokens, k), weight_of(n, k), torch.rand(n) / 100, torch.randn(n)
    block, steps = math.gcd(k, 512), 127.5 if tokens < 3 else 127.0
    multiplier = torch.rand(k) + 0.5 if tokens == 8 else None
    rounded = round_inputs(x, InputRounding(block, steps, multiplier))
    expected = reference.dynamic_linear(x, weight, scale, bias, block, multiplier, steps)
    assert same_bits(int8_linear(rounded, weight, scale, bias), expected)


@pytest.mark.parametrize(
    ("tokens", "n", "k"), [(1, 64, 256), (1, 80, 1536), (3, 16, 80), (33, 96, 576), (65, 160, 640), (100, 144, 592)]
)
def test_inputs_of_16_bits(tokens: int, n: int, k: int) -> None:
    x, weight, scale, bias = inputs_of(tokens, k), weight_of(n, k), torch.rand(n) / 100, torch.randn(n)
    rounded = round_inputs(x, InputRounding(math.gcd(k, 512), WIDE_INPUT_STEPS))
    residual = torch.randn(tokens, n)
    expected = residual + reference.dynamic_linear(
        x, weight, scale, bias, math.gcd(k, 512), input_steps=WIDE_INPUT_STEPS
    )
    assert same_bits(int8_linear(rounded, weight, scale, bias, residual=residual), expected)


@pytest.mark.parametrize(
    ("tokens", "n", "k"), [(1, 64, 256), (1, 80, 1536), (3, 16, 80), (33, 96, 576), (65, 160, 640), (200, 144, 592)]
)
def test_zero_point_per_token(tokens: int, n: int, k: int) -> None:
    x, weight, scale, bias = inputs_of(tokens, k) + 0.3, weight_of(n, k), torch.rand(n) / 100, torch.randn(n)
    rounded = round_inputs(x, InputRounding(math.gcd(k, 512), ASYMMETRIC_INPUT_STEPS))
    expected = reference.dynamic_linear(x, weight, scale, bias, math.gcd(k, 512), input_steps=ASYMMETRIC_INPUT_STEPS)
    assert same_bits(int8_linear(rounded, weight, scale, bias, totals=weight.sum(1, dtype=torch.int32)), expected)


def test_extreme_sums_with_zero_points() -> None:
    """Inputs of ±255 steps, in the longest rows."""
    weight, x = torch.tensor([[-128], [127]], dtype=torch.int8).expand(2, 65536).contiguous(), torch.ones(2, 65536)
    x[1] = -1
    rounded = round_inputs(x, InputRounding(0, ASYMMETRIC_INPUT_STEPS))
    expected = reference.dynamic_linear(x, weight, torch.ones(2), input_steps=ASYMMETRIC_INPUT_STEPS)
    assert same_bits(int8_linear(rounded, weight, torch.ones(2), totals=weight.sum(1, dtype=torch.int32)), expected)


def test_extreme_sums_of_16_bits() -> None:
    """The greatest sums of the longest rows, and the largest tiles."""
    weight, x = torch.tensor([[-128], [127]], dtype=torch.int8).expand(2, 65536).contiguous(), torch.ones(2, 65536)
    x[1] = -1
    rounded = round_inputs(x, InputRounding(0, WIDE_INPUT_STEPS))
    expected = reference.dynamic_linear(x, weight, torch.ones(2), input_steps=WIDE_INPUT_STEPS)
    assert same_bits(int8_linear(rounded, weight, torch.ones(2)), expected)


@pytest.mark.parametrize(("tokens", "n", "k"), [(1, 80, 1536), (17, 48, 80), (65, 144, 576)])
def test_static_scale(tokens: int, n: int, k: int) -> None:
    x, weight = torch.randn(tokens, k), weight_of(n, k)
    input_scale, offset = torch.tensor([0.031]), torch.tensor([-9.0])
    quant_bias, deq_scale = torch.randint(-(2**20), 2**20, (n,), dtype=torch.int32), torch.rand(n) / 100
    rounded = round_inputs(x, InputRounding(scale=input_scale, offset=offset))
    expected = reference.static_linear(x, weight, input_scale, offset, quant_bias, deq_scale)
    assert same_bits(int8_linear(rounded, weight, deq_scale, quant_bias=quant_bias), expected)


@pytest.mark.parametrize("kind", ["dynamic", "range", "wide", "static"])
def test_bits_of_the_cpu(kind: str) -> None:
    """From a checkpoint's table, as the C++ kernels."""
    n, k = 112, 640
    x, weight, multiplier = inputs_of(9, k), weight_of(n, k).numpy(), np.random.rand(k).astype(np.float32)
    scale, bias = np.random.rand(2, n).astype(np.float32)
    table: DynamicTable | StaticTable
    if kind == "dynamic":
        table = DynamicTable(weight, scale, bias, 128, multiplier, 127.5)
    elif kind == "range":
        table = DynamicTable(weight, scale, bias, 128, multiplier, ASYMMETRIC_INPUT_STEPS)
    elif kind == "wide":
        table = DynamicTable(weight, scale, bias, 128, multiplier, WIDE_INPUT_STEPS)
    else:
        quant_bias = np.arange(n, dtype=np.int32)
        table = StaticTable(weight, np.float32([0.05]), np.float32([5]), quant_bias, scale, multiplier)
    expected = torch.from_numpy(np.array(CpuBackend().linear(table)(x.numpy())))
    found = modules.linear(table, x.device)(x)
    assert same_bits(found, expected)


def test_the_largest_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 × 256 outputs and tokens, as large products have; tiles beyond both ends, several groups of them."""
    tokens, n, k = 2100, 144, 80
    monkeypatch.setattr(linear, "_PROGRAMS", 2)
    tiling_of.cache_clear()
    assert tiling_of(tokens, n, k)[:3] == (128, 256, 64)
    x, weight, scale = inputs_of(tokens, k), weight_of(n, k), torch.rand(n)
    rounded = RoundedInputs(*quantizers.quantize_rows(x))
    found = int8_linear(rounded, weight, scale, residual=torch.ones(tokens, n))
    tiling_of.cache_clear()
    assert same_bits(found, 1 + reference.dynamic_linear(x, weight, scale))


@pytest.mark.parametrize("tokens", [3, 70])
def test_the_residual_is_added_last_and_in_place(tokens: int) -> None:
    n, k = 80, 2048
    assert tiling_of(tokens, n, k).splits > 1
    x, weight, scale, bias = inputs_of(tokens, k), weight_of(n, k), torch.rand(n), torch.randn(n)
    residual = torch.randn(tokens, n) * 1000
    expected = residual + reference.dynamic_linear(x, weight, scale, bias)
    found = int8_linear(round_inputs(x, InputRounding()), weight, scale, bias, residual=residual, out=residual)
    assert found is residual
    assert same_bits(found, expected)


def test_memory_for_split_sums_is_reused() -> None:
    """Launches leave it as they found it, with garbage in the sums."""
    shapes = [(80, 3072), (64, 2048)]
    sums = SplitSums.empty(shapes, 9, torch.device("cpu"))
    sums.partial.fill_(-(2**31))
    for n, k in shapes * 2:
        x, weight, scale = inputs_of(9, k), weight_of(n, k), torch.rand(n)
        assert tiling_of(9, n, k).splits > 1
        found = int8_linear(round_inputs(x, InputRounding()), weight, scale, sums=sums)
        assert same_bits(found, reference.dynamic_linear(x, weight, scale))
        assert not sums.arrived.any()


def test_nothing_outside_is_read_or_written() -> None:
    tokens, n, k = 5, 80, 592
    x, weight, scale = inputs_of(tokens, k), weight_of(n, k), torch.rand(n)
    out = torch.full((tokens + 2, n), 5.0)
    scales = torch.full((n + 128,), math.nan)
    scales[:n] = scale
    int8_linear(round_inputs(x, InputRounding()), weight, scales[:n], out=out[1:-1])
    assert same_bits(out[1:-1], reference.dynamic_linear(x, weight, scale))
    assert out[[0, -1]].eq(5).all()


def test_a_row_has_its_bits_in_any_batch() -> None:
    n, k = 96, 576
    x, weight, scale = inputs_of(66, k), weight_of(n, k), torch.rand(n)
    together = int8_linear(round_inputs(x, InputRounding(64)), weight, scale)
    for some in (slice(0, 1), slice(20, 37), slice(65, 66)):
        alone = int8_linear(round_inputs(x[some].contiguous(), InputRounding(64)), weight, scale)
        assert same_bits(alone, together[some])


def test_wrong_arguments_are_refused() -> None:
    rounded = round_inputs(torch.ones(1, 64), InputRounding())
    with pytest.raises(ValueError, match=r"\[16, 80\] needs its width in inputs, a multiple of 16, not 64"):
        int8_linear(rounded, weight_of(16, 80), torch.ones(16))
    with pytest.raises(ValueError, match="quant_bias belongs to inputs with a static scale"):
        int8_linear(rounded, weight_of(16, 64), torch.ones(16), quant_bias=torch.ones(16, dtype=torch.int32))
    with pytest.raises(ValueError, match="totals belong to inputs with zero points"):
        int8_linear(rounded, weight_of(16, 64), torch.ones(16), totals=torch.ones(16, dtype=torch.int32))
    few = SplitSums.empty([(64, 2048)], 1, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"not made for 9 tokens of a weight \[64, 2048\]"):
        int8_linear(round_inputs(inputs_of(9, 2048), InputRounding()), weight_of(64, 2048), torch.ones(64), sums=few)
