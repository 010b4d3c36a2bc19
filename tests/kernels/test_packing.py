"""Weights are packed as described in csrc/isa/kernels.h, by any number of threads."""

from typing import Any

import numpy as np
import pytest

from faquant.kernels import _C
from oracles import packing


def up(n: int, step: int) -> int:
    return -(-n // step) * step


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("outputs", "inputs"), [(1, 1), (15, 3), (16, 4), (17, 63), (64, 64), (65, 65), (130, 127), (200, 1001)]
)
def test_int8(outputs: int, inputs: int, threads: int) -> None:
    weight = np.random.default_rng(outputs).integers(-128, 128, (outputs, inputs), np.int8)
    padded = np.zeros((up(inputs, 4), up(outputs, 16)), np.int8)
    padded[:inputs, :outputs] = weight.T
    packed, totals = np.full(padded.size, 7, np.int8), np.empty(outputs, np.int32)
    _C.pack_weight(weight, packed, totals, threads)
    np.testing.assert_array_equal(packed, packing.pack(padded))
    np.testing.assert_array_equal(totals, weight.sum(1, dtype=np.int32))


@pytest.mark.parametrize("value", [-128, 127])
def test_extreme_sums(value: int) -> None:
    weight, totals = np.full((2, 65536), value, np.int8), np.empty(2, np.int32)
    _C.pack_weight(weight, np.empty(16 * 65536, np.int8), totals, 1)
    assert totals.tolist() == [value * 65536] * 2


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.zeros((4, 4), np.uint8), "weight must be .* int8"),
        (np.zeros((4, 8), np.int8)[:, ::2], "weight must be a contiguous"),
        (np.zeros(16, np.int8), "weight must have two dimensions"),
    ],
)
def test_wrong_weights_are_refused(weight: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.pack_weight(weight, np.empty(64, np.int8), np.empty(4, np.int32), 1)
