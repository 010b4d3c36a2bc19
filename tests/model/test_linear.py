"""The C++ linears have the bits of the reference, for every instruction set, any rows and any threads."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faquant.kernels import _C, reference
from faquant.kernels import isa as cpu
from faquant.kernels.arrays import Array
from faquant.kernels.cpu import CpuBackend
from faquant.kernels.modules import DynamicLinear, FloatLinear, StaticLinear
from faquant.kernels.packing import PackedWeight
from faquant.kernels.tables import ASYMMETRIC_INPUT_STEPS, INPUT_STEPS, WIDE_INPUT_STEPS, DynamicTable, StaticTable
from faquant.kernels.torch_backend import TorchBackend
from oracles.packing import pack
from oracles.threads import set_threads

ISAS = cpu.available_isas()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Apply all linears with this instruction set."""
    chosen = str(request.param)
    apply = _C.Int8Linear.apply

    def forced(self: _C.Int8Linear, x: Array, out: Array, threads: int, isa: str | None) -> None:
        apply(self, x, out, threads, chosen)

    monkeypatch.setattr(_C.Int8Linear, "apply", forced)
    return chosen


def parts(outputs: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, scale and bias, as tensors; `arrays` has them as NumPy's."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8, generator=generator)
    return weight, torch.rand(outputs, generator=generator) * 0.1, torch.randn(outputs, generator=generator)


def arrays(*tensors: Tensor) -> list[Any]:
    """As from files: read-only."""
    result = [tensor.numpy().copy() for tensor in tensors]
    for array in result:
        array.flags.writeable = False
    return result


def check(
    x: Tensor, outputs: int, block: int, biased: bool, threads: int = 1, multiplier: Tensor | None = None
) -> None:
    """Both kinds of linears; every row as if alone."""
    weight, scale, bias = parts(outputs, x.shape[1])
    weight8, scales, biases = arrays(weight, scale, bias)
    multipliers = None if multiplier is None else arrays(multiplier)[0]
    set_threads(threads)
    dynamic = DynamicLinear(weight8, scales, biases if biased else None, block, multipliers)
    expected = reference.dynamic_linear(x, weight, scale, bias if biased else None, block, multiplier)
    assert torch.equal(dynamic(x), expected)
    assert torch.equal(dynamic(x[-1:]), expected[-1:])
    tables = torch.tensor([0.02]), torch.tensor([-3.0]), (bias * 1000).to(torch.int32), scale
    halves = DynamicLinear(weight8, scales, None, block, multipliers, 127.5)
    assert torch.equal(halves(x), reference.dynamic_linear(x, weight, scale, None, block, multiplier, 127.5))
    for steps in (ASYMMETRIC_INPUT_STEPS, WIDE_INPUT_STEPS):
        linear = DynamicLinear(weight8, scales, biases if biased else None, block, multipliers, steps)
        expected = reference.dynamic_linear(x, weight, scale, bias if biased else None, block, multiplier, steps)
        assert torch.equal(linear(x), expected)
        assert torch.equal(linear(x[-1:]), expected[-1:])
    static = StaticLinear(weight8, *arrays(*tables), multipliers)
    assert torch.equal(static(x), reference.static_linear(x, weight, *tables, multiplier))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 16, 17, 33, 100])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (7, 5), (16, 64), (63, 20), (65, 576), (200, 100)])
def test_any_shape(isa: str, rows: int, outputs: int, inputs: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inputs, generator=generator) * 3 + torch.randn(rows, 1, generator=generator) * 2
    check(x, outputs, inputs & -inputs if inputs > 1 else 0, biased=rows % 2 == 0)


@settings(max_examples=30)
@given(data=st.data())
def test_any_small_shape(data: st.DataObject) -> None:
    draw = data.draw
    inputs = draw(st.integers(1, 150))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(draw(st.integers(1, 40)), inputs, generator=generator) * 10.0 ** draw(st.integers(-20, 12))
    multiplier = torch.randn(inputs, generator=generator) * 10.0 ** draw(st.integers(-9, 9))
    check(
        x,
        draw(st.integers(1, 150)),
        block=draw(st.sampled_from([0, inputs & -inputs])),
        biased=draw(st.booleans()),
        multiplier=draw(st.sampled_from([None, multiplier])),
    )


@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (7, 5), (63, 20), (65, 576), (200, 100), (17, 999)])
@pytest.mark.parametrize("rotated", [False, True])
def test_inputs_are_multiplied_first(isa: str, rows: int, outputs: int, inputs: int, rotated: bool) -> None:
    """By positive and negative numbers, before the inputs are rotated or rounded."""
    generator = torch.Generator().manual_seed(rows)
    x, multiplier = torch.randn(rows, inputs, generator=generator) * 3, torch.randn(inputs, generator=generator)
    block = inputs & -inputs if rotated else 0
    check(x, outputs, block, biased=rows > 1, multiplier=multiplier)
    weight, scales, _ = arrays(*parts(outputs, inputs))
    linear = DynamicLinear(weight, scales, None, block, multiplier.numpy())
    assert torch.equal(linear(x), DynamicLinear(weight, scales, None, block)(x * multiplier))


def test_extreme_inputs_and_multipliers(isa: str) -> None:
    """Zeros of both signs, subnormal numbers and products, and products close to the largest float."""
    some = torch.tensor([0.0, -0.0, 1e-45, -1e-38, 1e-30, -1.0, 3e19, -1e30, 3e38])
    other = torch.tensor([0.0, -0.0, 1e-40, 1e-30, -1e-8, 1.0, -2.5, 1e19, -1e38])
    x, multiplier = (part.flatten() for part in torch.meshgrid(some, other, indexing="ij"))
    finite = (x * multiplier).isfinite()
    x, multiplier = x[finite], multiplier[finite]
    rows = torch.stack((x, -x, x.flip(0) * 1e-38, torch.where((x * multiplier).abs() < 2, x, 0)))
    check(rows, 20, 0, biased=True, multiplier=multiplier)


def test_products_beyond_the_floats_saturate_with_a_given_scale(isa: str) -> None:
    x, multiplier = torch.tensor([[3e38, -3e38, 1.0]]), torch.tensor([10.0, 10.0, -1.0])
    weight, scale, bias = parts(7, 3)
    tables = torch.tensor([0.02]), torch.tensor([-3.0]), bias.to(torch.int32), scale
    expected = reference.static_linear(torch.tensor([[9.0, -9.0, -1.0]]), weight, *tables)
    assert torch.equal(reference.static_linear(x, weight, *tables, multiplier), expected)
    assert torch.equal(StaticLinear(*arrays(weight, *tables, multiplier))(x), expected)


@pytest.mark.parametrize("backend", [CpuBackend(), TorchBackend()])
def test_a_table_with_a_multiplier(backend: CpuBackend) -> None:
    x, multiplier = torch.randn(2, 5, generator=torch.Generator().manual_seed(7)), torch.linspace(-2, 2, 5)
    weight, scale, bias = parts(7, 5)
    tables = torch.tensor([0.02]), torch.tensor([-3.0]), bias.to(torch.int32), scale
    expected = reference.dynamic_linear(x, weight, scale, bias, input_multiplier=multiplier)
    dynamic, static = DynamicTable(*arrays(weight, scale, bias)), StaticTable(*arrays(weight, *tables))
    for table, y in ((dynamic, expected), (static, reference.static_linear(x, weight, *tables, multiplier))):
        plain, multiplied = (backend.linear(replace(table, input_multiplier=m)) for m in (None, multiplier.numpy()))
        assert torch.equal(multiplied(x), y)
        assert not torch.equal(plain(x), y)
        assert multiplied.nbytes == plain.nbytes + multiplier.nbytes


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(isa: str, threads: int) -> None:
    check(torch.randn(70, 1536, generator=torch.Generator().manual_seed(2)), 600, 512, biased=True, threads=threads)


@pytest.mark.parametrize("value", [-128, 127])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("inputs", [2, 28672, cpu.MAX_DOT_LENGTH])
@pytest.mark.parametrize("steps", [INPUT_STEPS, ASYMMETRIC_INPUT_STEPS, WIDE_INPUT_STEPS])
def test_extreme_integers_are_summed_exactly(isa: str, value: int, sign: float, inputs: int, steps: float) -> None:
    """All inputs become ±127, ±255 or ±32,639, and all weights the least or the greatest: the sums are as far from zero
    as possible."""
    weight = torch.full((17, inputs), value, dtype=torch.int8)
    x, scale = torch.full((2, inputs), sign), torch.ones(17)
    expected = reference.dynamic_linear(x, weight, scale, input_steps=steps)
    assert torch.equal(DynamicLinear(*arrays(weight, scale), input_steps=steps)(x), expected)
    assert expected[0, 0] == pytest.approx(sign * value * inputs, rel=1e-6)


def test_every_integer_of_16_bits(isa: str) -> None:
    """An identity as weight returns the integers: those of a reference in whole numbers, and their halves to even."""
    whole = torch.arange(-32639, 32640).float()
    values = torch.cat((whole, whole[:-1] + 0.5)).view(-1, 1)
    # Two inputs: the value, and the peak, by which a step is 1.
    x = torch.cat((values, torch.full_like(values, WIDE_INPUT_STEPS)), dim=1)
    weight, scale = torch.tensor([[1, 0], [0, 1], [-128, 127]], dtype=torch.int8), torch.ones(3)
    y = DynamicLinear(*arrays(weight, scale), input_steps=WIDE_INPUT_STEPS)(x)
    integers = np.rint(values[:, 0].double().numpy())
    assert np.array_equal(y[:, 0], integers)
    assert (y[:, 1] == 32639).all()
    assert np.array_equal(y[:, 2], (-128 * integers + 127 * 32639).astype(np.float32))


@pytest.mark.parametrize("least", [-255.0, -200.0, -127.5, -0.5, 0.0])
def test_every_integer_of_a_range(isa: str, least: float) -> None:
    """A range of 255 has steps of 1: an identity as weight returns whole numbers, and halves to even, but at most 255
    steps above the least."""
    values = torch.arange(511) / 2 + least
    x = torch.stack((values, torch.full_like(values, least), torch.full_like(values, least + 255)), dim=1)
    weight, scale = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.int8), torch.ones(3)
    y = DynamicLinear(*arrays(weight, scale), input_steps=ASYMMETRIC_INPUT_STEPS)(x)
    zero = np.rint(-least)
    assert np.array_equal(y, np.minimum(np.rint(x.numpy()), 255 - zero))
    assert y.min() == -zero


def test_both_products_are_rounded_together(isa: str) -> None:
    """The high bytes' sum is 2^24 + 1, so 256 times it is a tie in float32. The low bytes' sum, 1, decides it."""
    factors = [(64 * 256, 127)] * 2064 + [(8 * 256, 127), (9 * 256, 1), (1, 1), (32639, 0)]
    x, weight = (torch.tensor([numbers]) for numbers in zip(*factors, strict=True))
    linear = DynamicLinear(*arrays(weight.to(torch.int8), torch.ones(1)), input_steps=WIDE_INPUT_STEPS)
    assert linear(x.float()).item() == 2**32 + 512
    x[0, -2] = 0
    assert linear(x.float()).item() == 2**32


@pytest.mark.parametrize("special", [0.0, 1e-38, 1e-30, 3e38])
def test_rows_of_any_size(isa: str, special: float) -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    x[1] = special
    check(x, 20, 0, biased=True)


@pytest.mark.parametrize("special", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("steps", [INPUT_STEPS, ASYMMETRIC_INPUT_STEPS, WIDE_INPUT_STEPS])
def test_what_is_not_finite_stays_so_and_in_its_row(isa: str, special: float, steps: float) -> None:
    weight, scale, bias = parts(20, 64)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(4))
    linear = DynamicLinear(*arrays(weight, scale, bias), input_steps=steps)
    expected = linear(x)
    x[2, 5] = special
    y = linear(x)
    assert not y[2].isfinite().any()
    assert torch.equal(y[[0, 1, 3]], expected[[0, 1, 3]])


def test_halves_round_to_even_before_the_offset(isa: str) -> None:
    x = (torch.arange(-20, 20) * 0.5 * 0.02)[None]
    check(x, 16, 0, biased=False)


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[::2], lambda x: x[:, 4:]], ids=["whole", "rows", "part"])
def test_arrays_of_numpy_give_the_bits_of_tensors_and_come_back_as_arrays(view: Callable[[Array], Array]) -> None:
    """Contiguous arrays and others."""
    x = torch.randn(9, 24, generator=torch.Generator().manual_seed(5))
    weight, scale, bias = arrays(*parts(7, view(x).shape[1]))
    one, zero, offsets = np.full(1, 0.02, np.float32), np.zeros(1, np.float32), bias.astype(np.int32)
    for linear in (
        DynamicLinear(weight, scale, bias),
        StaticLinear(weight, one, zero, offsets, scale),
        FloatLinear(weight.astype(np.float32), bias),
    ):
        ours, theirs = linear(view(x.numpy())), linear(view(x))
        assert (type(ours), type(theirs)) == (np.ndarray, Tensor)
        assert (ours.dtype, theirs.dtype) == (np.float32, torch.float32)
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_float_linear_computes_in_float32(dtype: torch.dtype, biased: bool) -> None:
    generator = torch.Generator().manual_seed(6)
    weight, bias, x = torch.randn(7, 20, generator=generator).to(dtype), torch.randn(7), torch.randn(3, 20)
    stored = weight.view(torch.int16).numpy().view(np.uint16) if dtype == torch.bfloat16 else weight.numpy()
    linear = FloatLinear(stored, bias.numpy() if biased else None)
    expected = x.double() @ weight.double().T + (bias if biased else 0)
    torch.testing.assert_close(linear(x).double(), expected, rtol=0, atol=1e-5)
    assert np.array_equal(linear.weight, weight.float())
    # bfloat16 stays as it is; columns are filled up to whole vectors.
    assert linear.nbytes == (2 if dtype == torch.bfloat16 else 4) * 20 * 16 + 4 * 7 * biased


def test_a_weight_is_packed_as_described_and_comes_back() -> None:
    for outputs, inputs in ((1, 1), (70, 30), (64, 64), (129, 7)):
        weight, _, _ = parts(outputs, inputs)
        packed = PackedWeight(*arrays(weight))
        padded = torch.zeros(-(-inputs // 4) * 4, -(-outputs // 16) * 16, dtype=torch.int8)
        padded[:inputs, :outputs] = weight.T
        assert np.array_equal(packed.values, pack(padded))
        assert np.array_equal(packed.unpack(), weight)
        assert np.array_equal(packed.totals, weight.sum(1, dtype=torch.int32))
        assert packed.nbytes == packed.values.nbytes + 4 * outputs


GOOD: dict[str, Any] = {
    "inputs": 8,
    "outputs": 3,
    "weight": np.zeros(128, np.int8),
    "totals": np.zeros(3, np.int32),
    "scale": np.ones(3, np.float32),
    "bias": None,
    "hadamard_block": 0,
    "input_scale": None,
    "input_offset": None,
    "quant_bias": None,
    "input_multiplier": None,
    "input_steps": 127.0,
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight": np.zeros(127, np.int8)}, "weight must be"),
        ({"weight": np.zeros(128, np.uint8)}, "weight must be"),
        ({"weight": np.zeros(256, np.int8)[::2]}, "weight must be a contiguous array"),
        ({"totals": np.zeros(3, np.int64)}, "totals must be"),
        ({"scale": np.ones(4, np.float32)}, "scale must be"),
        ({"scale": np.ones(3)}, "scale must be a contiguous array of float32"),
        ({"scale": np.ones((3, 1), np.float32)}, "scale must be"),
        ({"bias": np.ones(2, np.float32)}, "bias must be"),
        ({"input_multiplier": np.ones(7, np.float32)}, r"input_multiplier must be .* float32 \[8\]"),
        ({"input_multiplier": np.ones(8)}, "input_multiplier must be"),
        ({"input_steps": 128.0}, "input_steps must be 127, 127.5, 255"),
        ({"hadamard_block": 3}, "power of two"),
        ({"hadamard_block": 16}, "divides"),
        ({"inputs": 0}, "impossible"),
        ({"inputs": 1 << 17}, "impossible"),
        ({"input_scale": np.ones(1, np.float32)}, "together"),
    ],
)
def test_wrong_tables_are_refused(wrong: dict[str, Any], message: str) -> None:
    _C.Int8Linear(**GOOD)
    with pytest.raises(ValueError, match=message):
        _C.Int8Linear(**{**GOOD, **wrong})


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.zeros(2, 7), ValueError),
        (torch.zeros(2, 8).double(), ValueError),
        (np.zeros((2, 8), np.float16), ValueError),
        (np.zeros((2, 8), np.int32), ValueError),
        (torch.zeros(8), ValueError),
        (torch.zeros(2, 2, 8), ValueError),
        (torch.zeros(2, 8, device="meta"), TypeError),
    ],
)
def test_wrong_inputs_are_refused(x: Any, error: type[Exception]) -> None:
    linear = DynamicLinear(np.zeros((3, 8), np.int8), np.ones(3, np.float32))
    assert torch.equal(linear(torch.zeros(16, 4).T[:, :8]), torch.zeros(4, 3))
    with pytest.raises(error):
        linear(x)
    out = np.empty((len(x), 3), np.float32)
    with pytest.raises(error):
        linear.kernel.apply(x, out, 1, None)


@pytest.mark.parametrize("out", [np.empty((2, 4), np.float32), np.empty((2, 3)), np.empty((3, 2), np.float32).T])
def test_a_result_of_another_kind_is_refused(out: Array) -> None:
    linear = DynamicLinear(np.zeros((3, 8), np.int8), np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"out must be a contiguous array of float32 \[2, 3\]"):
        linear.kernel.apply(np.zeros((2, 8), np.float32), out, 1, None)
