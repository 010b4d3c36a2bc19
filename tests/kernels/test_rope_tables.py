"""Cosines and sines of RoPE compared with float64, which is far more precise than float32."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from faquant.kernels import _C


def tables(frequencies: Any, positions: Any, scaling: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = (np.full((len(positions), 2 * len(frequencies)), 7.0, np.float32) for _ in range(2))
    _C.rope_tables(frequencies, positions, scaling, cos, sin)
    return cos, sin


def angles(frequencies: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return positions.astype(np.float32)[:, None] * frequencies


def steps_between(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance in float32 steps."""
    return np.abs(x.view(np.int32).astype(np.int64) - y.view(np.int32))


def assert_rounded(got: np.ndarray, exact: np.ndarray) -> None:
    difference = steps_between(got, exact.astype(np.float32))
    assert difference.max() <= 1
    assert (difference != 0).mean() < 1e-5


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("dim", [2, 20, 64, 128])
def test_tables_of_models(theta: float, dim: int) -> None:
    frequencies = (1.0 / theta ** (np.arange(0, dim, 2) / dim)).astype(np.float32)
    positions = np.concatenate([np.arange(3000), np.arange(120_000, 131_072, 7)])
    x = angles(frequencies, positions).astype(np.float64)
    cos, sin = tables(frequencies, positions)
    for got, exact in ((cos, np.cos(x)), (sin, np.sin(x))):
        np.testing.assert_array_equal(got[:, : dim // 2], got[:, dim // 2 :])
        assert_rounded(got[:, : dim // 2], exact)


@pytest.mark.parametrize("sign", [1, -1])
def test_angles_of_all_sizes(sign: int) -> None:
    rng = np.random.default_rng(0)
    frequencies = (sign * 2.0 ** rng.uniform(-30, 24, 400_000)).astype(np.float32)
    cos, sin = tables(frequencies, np.array([1]))
    x = frequencies.astype(np.float64)
    assert_rounded(cos[0, : len(x)], np.cos(x))
    assert_rounded(sin[0, : len(x)], np.sin(x))


def test_angles_next_to_multiples_of_a_right_angle() -> None:
    multiples = (np.arange(1, 1 << 20) * (np.pi / 2)).astype(np.float32)
    frequencies = np.concatenate([multiples, np.nextafter(multiples, np.float32(0))])
    cos, sin = tables(frequencies, np.array([1]))
    # NumPy is off by the rest of π/2 only if the library's argument reduction is wrong.
    x = frequencies.astype(np.float64)
    assert_rounded(cos[0, : len(x)], np.cos(x))
    assert_rounded(sin[0, : len(x)], np.sin(x))


def test_the_same_bits_on_every_machine() -> None:
    frequencies = np.float32(1) / np.arange(1, 33, dtype=np.float32)
    cos, sin = tables(frequencies, np.arange(0, 100_000, 97), 0.75)
    assert hashlib.sha256(cos.tobytes() + sin.tobytes()).hexdigest()[:16] == "984b070b426f3e0f"


def test_scaling_is_one_more_rounding() -> None:
    frequencies, positions = np.array([1.0, 0.1], np.float32), np.arange(100)
    cos, sin = tables(frequencies, positions)
    scaled = tables(frequencies, positions, 1.1386)
    np.testing.assert_array_equal(scaled[0], cos * np.float32(1.1386))
    np.testing.assert_array_equal(scaled[1], sin * np.float32(1.1386))


def test_zero_and_torch_tensors() -> None:
    cos, sin = torch.empty(1, 4), torch.empty(1, 4)
    _C.rope_tables(torch.tensor([1.0, 0.5]), torch.tensor([0]), 1.0, cos, sin)
    assert torch.equal(cos, torch.ones(1, 4))
    assert torch.equal(sin, torch.zeros(1, 4))
    assert tables(np.zeros(0, np.float32), np.arange(3))[0].shape == (3, 0)
    assert tables(np.ones(2, np.float32), np.arange(0))[0].shape == (0, 4)


GOOD: dict[str, Any] = {
    "frequencies": np.ones(2, np.float32),
    "positions": np.arange(3),
    "scaling": 1.0,
    "cos": np.zeros((3, 4), np.float32),
    "sin": np.zeros((3, 4), np.float32),
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frequencies": np.ones(2)}, "frequencies must be .* float32"),
        ({"positions": np.arange(3, dtype=np.int32)}, "positions must be .* int64"),
        ({"positions": np.arange(3)[:, None]}, "one dimension"),
        ({"cos": np.zeros((3, 2), np.float32)}, r"cos must be .* \[3, 4\]"),
        ({"sin": np.zeros((4, 4), np.float32)}, r"sin must be .* \[3, 4\]"),
        ({"sin": np.zeros((3, 8), np.float32)[:, ::2]}, "sin must be a contiguous"),
    ],
)
def test_wrong_arrays_are_refused(wrong: dict[str, Any], message: str) -> None:
    _C.rope_tables(**GOOD)
    with pytest.raises(ValueError, match=message):
        _C.rope_tables(**{**GOOD, **wrong})
