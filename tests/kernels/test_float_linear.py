"""Linears with float weights against a plain loop of exact fused operations, bit for bit."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from faquant.kernels import _C
from faquant.kernels import isa as isa_module
from oracles import fused

isas = pytest.mark.parametrize("isa", isa_module.available_isas())
kinds = pytest.mark.parametrize("kind", ["float32", "bfloat16"])


def up(n: int, step: int) -> int:
    return -(-n // step) * step


def packed(weight: np.ndarray, threads: int = 1) -> np.ndarray:
    """Weights of float32, or of bfloat16's bits."""
    outputs, inputs = weight.shape
    store = np.full((inputs if weight.dtype == np.float32 else up(inputs, 2)) * up(outputs, 16), 7, weight.dtype)
    _C.pack_float_weight(weight, store, threads)
    return store


def random_weight(rng: np.random.Generator, kind: str, outputs: int, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight to pack, and as float32."""
    weight = rng.standard_normal((outputs, inputs), np.float32)
    if kind == "float32":
        return weight, weight
    bits = (weight.view(np.uint32) >> 16).astype(np.uint16)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32)


def applied(
    weight: np.ndarray, x: np.ndarray, bias: np.ndarray | None, isa: str | None = None, threads: int = 1
) -> np.ndarray:
    outputs, inputs = weight.shape
    linear = _C.FloatLinear(inputs=inputs, outputs=outputs, weight=packed(weight), bias=bias)
    out = np.full((len(x) + 1, outputs), 7.0, np.float32)
    linear.apply(x, out[: len(x)], threads, isa)
    assert (out[len(x)] == 7.0).all()
    return out[: len(x)]


def assert_same(x: np.ndarray, y: np.ndarray) -> None:
    """The same bits, except for the payload of NaN."""
    np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(np.signbit(x) & ~np.isnan(x), np.signbit(y) & ~np.isnan(y))


floats = st.floats(width=32)


@given(st.tuples(floats, floats, floats))
def test_the_oracle_rounds_once(numbers: tuple[float, float, float]) -> None:
    a, b, c = (np.float32(x) for x in numbers)
    result = float(fused.fma(*(np.array([x]) for x in (a, b, c)))[0])
    if not all(np.isfinite(x) for x in (a, b, c)):
        return
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if not np.isfinite(result):
        assert abs(exact) >= Fraction(2) ** 127 * (2 - Fraction(2) ** -24)
        return
    here = abs(Fraction(result) - exact)
    for to in (-np.inf, np.inf):
        there = float(np.nextafter(np.float32(result), np.float32(to)))
        assert not np.isfinite(there) or here <= abs(Fraction(there) - exact)


@isas
@kinds
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 1, 1), (2, 63, 15), (3, 64, 16), (4, 65, 17), (5, 127, 63), (6, 128, 64), (7, 129, 65), (13, 33, 100)],
)
def test_sizes(isa: str, kind: str, rows: int, inputs: int, outputs: int) -> None:
    rng = np.random.default_rng(rows)
    weight, wide = random_weight(rng, kind, outputs, inputs)
    x = rng.standard_normal((rows, inputs), np.float32)
    for bias in (None, rng.standard_normal(outputs, np.float32)):
        assert_same(applied(weight, x, bias, isa), fused.linear(x, wide, bias))


@isas
@kinds
def test_more_rows_and_inputs_than_are_taken_at_once(isa: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    weight, wide = random_weight(rng, kind, 70, 601)
    x, bias = rng.standard_normal((103, 601), np.float32), rng.standard_normal(70, np.float32)
    assert_same(applied(weight, x, bias, isa), fused.linear(x, wide, bias))


@isas
@kinds
def test_extreme_numbers(isa: str, kind: str) -> None:
    """Subnormal, huge and infinite numbers, and NaN."""
    rng = np.random.default_rng(1)
    weight, wide = random_weight(rng, kind, 40, 90)
    x = rng.standard_normal((6, 90), np.float32)
    x[0] *= np.float32(1e-38)
    x[1] *= np.float32(1e-42)
    x[2] *= np.float32(1e37)
    x[3, ::7] = 0.0
    x[4, 5], x[5, 6] = np.inf, np.nan
    out = applied(weight, x, None, isa)
    assert_same(out, fused.linear(x, wide, None))
    assert np.isnan(out[5]).all()
    assert np.isfinite(out[[0, 1, 3]]).all()


@isas
@kinds
def test_a_row_depends_on_itself_alone(isa: str, kind: str) -> None:
    rng = np.random.default_rng(2)
    weight, _ = random_weight(rng, kind, 200, 300)
    x = rng.standard_normal((150, 300), np.float32)
    whole = applied(weight, x, None, isa)
    for some in (slice(0, 1), slice(3, 10), slice(50, 149)):
        assert_same(applied(weight, x[some], None, isa, threads=3), whole[some])


@kinds
def test_threads(kind: str) -> None:
    rng = np.random.default_rng(3)
    weight, _ = random_weight(rng, kind, 1500, 250)
    x = rng.standard_normal((9, 250), np.float32)
    assert_same(packed(weight), packed(weight, 3))
    whole = applied(weight, x, None)
    for threads in (2, 3, 8):
        assert_same(applied(weight, x, None, threads=threads), whole)


def test_torch_tensors_and_no_rows() -> None:
    weight, bias, x = torch.randn(33, 20), torch.randn(33), torch.randn(5, 20)
    store, out = torch.empty(20 * 48), torch.empty(5, 33)
    _C.pack_float_weight(weight, store, 1)
    linear = _C.FloatLinear(inputs=20, outputs=33, weight=store, bias=bias)
    linear.apply(x, out, 1)
    assert torch.allclose(out, torch.nn.functional.linear(x, weight, bias), atol=1e-5)
    linear.apply(x[:0], out[:0], 2)
    assert (linear.inputs, linear.outputs) == (20, 33)


GOOD: dict[str, Any] = {"inputs": 3, "outputs": 2, "weight": np.zeros(48, np.float32), "bias": None}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inputs": 0}, "impossible size"),
        ({"outputs": 17}, r"weight must be .* \[96\]"),
        ({"weight": np.zeros(48, np.uint16)}, r"weight must be .* uint16 \[64\]"),
        ({"weight": np.zeros(48, np.float64)}, "weight must be .* float32 or uint16"),
        ({"weight": np.zeros(96, np.float32)[::2]}, "contiguous"),
        ({"bias": np.zeros(3, np.float32)}, r"bias must be .* \[2\]"),
    ],
)
def test_wrong_weights_are_refused(wrong: dict[str, Any], message: str) -> None:
    _C.FloatLinear(**GOOD)
    with pytest.raises(ValueError, match=message):
        _C.FloatLinear(**{**GOOD, **wrong})


@pytest.mark.parametrize(
    ("x", "out", "message"),
    [
        (np.zeros((4, 2), np.float32), np.zeros((4, 2), np.float32), "x must be"),
        (np.zeros(3, np.float32), np.zeros((1, 2), np.float32), "x must be"),
        (np.zeros((4, 3)), np.zeros((4, 2), np.float32), "x must be .* float32"),
        (np.zeros((8, 3), np.float32)[::2], np.zeros((4, 2), np.float32), "x must be a contiguous"),
        (np.zeros((4, 3), np.float32), np.zeros((3, 2), np.float32), r"out must be .* \[4, 2\]"),
    ],
)
def test_wrong_rows_are_refused(x: np.ndarray, out: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.FloatLinear(**GOOD).apply(x, out, 1)


@pytest.mark.parametrize(
    ("weight", "store", "message"),
    [
        (np.zeros((2, 3)), np.zeros(48, np.float32), "weight must be .* float32 or uint16"),
        (np.zeros((2, 3), np.float32), np.zeros(48, np.uint16), "packed must be .* float32"),
        (np.zeros((2, 3), np.uint16), np.zeros(48, np.uint16), r"packed must be .* uint16 \[64\]"),
        (np.zeros(6, np.float32), np.zeros(48, np.float32), "two dimensions"),
    ],
)
def test_what_cannot_be_packed_is_refused(weight: np.ndarray, store: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.pack_float_weight(weight, store, 1)
