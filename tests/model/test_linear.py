"""The C++ linears have the bits of the reference, for every instruction set, any rows and any threads."""

from typing import Any

import pytest
import torch
from faquant.model.linear import DynamicLinear, StaticLinear
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faquant.kernels import _C, reference
from faquant.kernels import isa as cpu
from faquant.kernels.packing import PackedWeight
from oracles.packing import pack
from oracles.threads import set_threads

ISAS = cpu.available_isas()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All linears are applied with that instruction set."""
    chosen = str(request.param)
    apply = _C.Int8Linear.apply

    def forced(self: _C.Int8Linear, x: int, out: int, rows: int, threads: int, isa: str | None) -> None:
        apply(self, x, out, rows, threads, chosen)

    monkeypatch.setattr(_C.Int8Linear, "apply", forced)
    return chosen


def parts(outputs: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, scale and bias."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8, generator=generator)
    return weight, torch.rand(outputs, generator=generator) * 0.1, torch.randn(outputs, generator=generator)


def check(x: Tensor, outputs: int, block: int, biased: bool, threads: int = 1) -> None:
    """Both kinds of linear, and every row as alone."""
    weight, scale, bias = parts(outputs, x.shape[1])
    set_threads(threads)
    dynamic = DynamicLinear(weight, scale, bias if biased else None, block)
    expected = reference.dynamic_linear(x, weight, scale, bias if biased else None, block)
    assert torch.equal(dynamic(x), expected)
    assert torch.equal(dynamic(x[-1:]), expected[-1:])
    tables = torch.tensor([0.02]), torch.tensor([-3.0]), (bias * 1000).to(torch.int32), scale
    static = StaticLinear(weight, *tables)
    assert torch.equal(static(x), reference.static_linear(x, weight, *tables))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 16, 17, 33, 100])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (7, 5), (16, 64), (63, 20), (65, 576), (200, 100)])
def test_any_shape(isa: str, rows: int, outputs: int, inputs: int) -> None:
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)) * 3
    check(x, outputs, inputs & -inputs if inputs > 1 else 0, biased=rows % 2 == 0)


@settings(max_examples=30)
@given(data=st.data())
def test_any_small_shape(data: st.DataObject) -> None:
    draw = data.draw
    inputs = draw(st.integers(1, 150))
    x = torch.randn(draw(st.integers(1, 40)), inputs, generator=torch.Generator().manual_seed(1))
    check(x * 10.0 ** draw(st.integers(-20, 12)), draw(st.integers(1, 150)), 0, draw(st.booleans()))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(isa: str, threads: int) -> None:
    check(torch.randn(70, 1536, generator=torch.Generator().manual_seed(2)), 600, 512, biased=True, threads=threads)


@pytest.mark.parametrize("value", [-128, 127])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("inputs", [2, 28672])
def test_extreme_integers_are_summed_exactly(isa: str, value: int, sign: float, inputs: int) -> None:
    """All inputs become ±127, all weights the least or the greatest: no sum is further from zero."""
    weight = torch.full((17, inputs), value, dtype=torch.int8)
    x, scale = torch.full((2, inputs), sign), torch.ones(17)
    expected = reference.dynamic_linear(x, weight, scale)
    assert torch.equal(DynamicLinear(weight, scale)(x), expected)
    assert expected[0, 0] == pytest.approx(sign * value * inputs, rel=1e-6)


@pytest.mark.parametrize("special", [0.0, 1e-38, 1e-30, 3e38])
def test_rows_of_any_size(isa: str, special: float) -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    x[1] = special
    check(x, 20, 0, biased=True)


@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so_and_in_its_row(isa: str, special: float) -> None:
    weight, scale, bias = parts(20, 64)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(4))
    expected = DynamicLinear(weight, scale, bias)(x)
    x[2, 5] = special
    y = DynamicLinear(weight, scale, bias)(x)
    assert not y[2].isfinite().any()
    assert torch.equal(y[[0, 1, 3]], expected[[0, 1, 3]])


def test_halves_round_to_even_before_the_offset(isa: str) -> None:
    x = (torch.arange(-20, 20) * 0.5 * 0.02)[None]
    check(x, 16, 0, biased=False)


def test_a_weight_is_packed_as_described_and_comes_back() -> None:
    for outputs, inputs in ((1, 1), (70, 30), (64, 64), (129, 7)):
        weight, _, _ = parts(outputs, inputs)
        packed = PackedWeight(weight)
        padded = torch.zeros(-(-inputs // 4) * 4, -(-outputs // 16) * 16, dtype=torch.int8)
        padded[:inputs, :outputs] = weight.T
        assert torch.equal(packed.values, pack(padded))
        assert torch.equal(packed.unpack(), weight)
        assert torch.equal(packed.excess, 128 * weight.sum(1, dtype=torch.int32))
        assert packed.nbytes == packed.values.nbytes + 4 * outputs


GOOD: dict[str, Any] = {
    "inputs": 8,
    "outputs": 3,
    "weight": torch.zeros(128, dtype=torch.int8),
    "excess": torch.zeros(3, dtype=torch.int32),
    "scale": torch.ones(3),
    "bias": None,
    "hadamard_block": 0,
    "input_scale": None,
    "input_offset": None,
    "quant_bias": None,
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight": torch.zeros(127, dtype=torch.int8)}, "weight must be"),
        ({"excess": torch.zeros(3, dtype=torch.int64)}, "excess must be"),
        ({"scale": torch.ones(4)}, "scale must be"),
        ({"bias": torch.ones(2)}, "bias must be"),
        ({"hadamard_block": 3}, "power of two"),
        ({"hadamard_block": 16}, "divides"),
        ({"inputs": 0}, "impossible"),
        ({"inputs": 1 << 17}, "impossible"),
        ({"input_scale": torch.ones(1)}, "go together"),
    ],
)
def test_wrong_tables_are_refused(wrong: dict[str, Any], message: str) -> None:
    _C.Int8Linear(**GOOD)
    with pytest.raises(ValueError, match=message):
        _C.Int8Linear(**{**GOOD, **wrong})


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 7), torch.zeros(2, 8).double(), torch.zeros(8), torch.zeros(2, 8, device="meta")]
)
def test_wrong_inputs_are_refused(x: Tensor) -> None:
    linear = DynamicLinear(torch.zeros(3, 8, dtype=torch.int8), torch.ones(3))
    assert torch.equal(linear(torch.zeros(16, 4).T[:, :8].contiguous()), torch.zeros(4, 3))
    with pytest.raises((ValueError, IndexError), match=r"must be a contiguous tensor|out of range"):
        linear(x)
