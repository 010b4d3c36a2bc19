"""16-bit numbers are converted exactly to float32, compared with NumPy and torch."""

from typing import Any

import numpy as np
import pytest
import torch

from faquant.kernels import _C

ALL = np.arange(1 << 16, dtype=np.uint16)
WIDEN = {"bfloat16": _C.widen_bfloat16, "float16": _C.widen_float16}

kinds = pytest.mark.parametrize("kind", list(WIDEN))


def expected(kind: str, bits: np.ndarray) -> np.ndarray:
    """The bits of the float32 numbers; NaN keeps its payload."""
    if kind == "bfloat16":
        return bits.astype(np.uint32) << 16
    wide = bits.view(np.float16).astype(np.float32).view(np.uint32)
    quiet = (bits & 0x8000).astype(np.uint32) << 16 | 0x7F800000 | (bits & 0x3FF).astype(np.uint32) << 13
    return np.where(np.isnan(bits.view(np.float16)), quiet, wide)


def widened(kind: str, bits: Any, threads: int = 1) -> np.ndarray:
    target = np.full(len(bits) + 1, 7.0, np.float32)
    WIDEN[kind](bits, target[:-1], threads)
    assert target[-1] == 7.0
    return target[:-1].view(np.uint32)


@kinds
def test_every_number(kind: str) -> None:
    np.testing.assert_array_equal(widened(kind, ALL), expected(kind, ALL))


@kinds
@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 1000, 200_000])
def test_lengths_and_threads(kind: str, length: int) -> None:
    bits = np.random.default_rng(length).integers(0, 1 << 16, length, np.uint16)
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(widened(kind, bits, threads), expected(kind, bits))


@kinds
def test_an_odd_address(kind: str) -> None:
    bits = np.frombuffer(b"\0" + ALL.tobytes(), np.uint16, offset=1)
    np.testing.assert_array_equal(widened(kind, bits), expected(kind, ALL))


def test_torch_tensors() -> None:
    x = torch.randn(1000).bfloat16()
    target = torch.empty(1000)
    _C.widen_bfloat16(x.view(torch.uint16), target, 2)
    assert torch.equal(target, x.float())


@kinds
@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (np.zeros(4, np.int16), np.zeros(4, np.float32), "source must be .* uint16"),
        (np.zeros((2, 2), np.uint16), np.zeros(4, np.float32), "source must have one dimension"),
        (np.zeros(8, np.uint16)[::2], np.zeros(4, np.float32), "source must be a contiguous"),
        (np.zeros(4, np.uint16), np.zeros(5, np.float32), r"target must be .* float32 \[4\]"),
        (np.zeros(4, np.uint16), np.zeros(4, np.float64), "target must be .* float32"),
    ],
)
def test_wrong_arrays_are_refused(kind: str, source: Any, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WIDEN[kind](source, target, 1)


@kinds
def test_a_read_only_target_is_refused(kind: str) -> None:
    target = np.zeros(4, np.float32)
    target.flags.writeable = False
    with pytest.raises(TypeError):
        WIDEN[kind](np.zeros(4, np.uint16), target, 1)
