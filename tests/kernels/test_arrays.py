"""Functions for arrays of both NumPy and torch."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from faquant.kernels import arrays, quantizers

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def stored(tensor: Tensor) -> Any:
    """As from a file: bfloat16's bits, read-only."""
    bits = tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
    bits = bits.copy()
    bits.flags.writeable = False
    return bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (5,), (0,), (3, 40), (2, 3, 4)])
def test_stored_floats_are_widened_and_become_tensors(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    wide = arrays.widen(stored(tensor))
    assert (wide.dtype, wide.shape) == (np.float32, shape)
    assert np.array_equal(wide, tensor.float().numpy())
    again = quantizers.tensor_of(stored(tensor))
    assert again.dtype == dtype
    assert torch.equal(again, tensor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_that_do_not_lie_in_order_are_widened(dtype: torch.dtype) -> None:
    tensor = torch.randn(6, 10, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert np.array_equal(arrays.widen(stored(tensor)[::2, 3:].T), tensor.float().numpy()[::2, 3:].T)


def test_float32_is_not_copied() -> None:
    x = np.ones(3, np.float32)
    assert arrays.widen(x) is x
    assert quantizers.tensor_of(x).data_ptr() == x.ctypes.data
    tensor = torch.ones(3)
    assert quantizers.tensor_of(tensor) is tensor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 77, (1 << 20) - 1, 1 << 20, (1 << 20) + 76])
def test_a_value_that_is_not_finite_is_found_wherever_it_stands(dtype: torch.dtype, value: float, place: int) -> None:
    x = torch.ones((1 << 20) + 77, dtype=dtype)
    x[1], x[2] = torch.finfo(dtype).max, torch.finfo(dtype).min
    assert arrays.is_finite(stored(x))
    x[place] = value
    assert not arrays.is_finite(stored(x))


def test_what_is_made_is_of_the_library_that_was_given() -> None:
    for given in (np.zeros(2, np.float32), torch.zeros(2)):
        made = arrays.empty(given, 3, 4)
        assert (type(made), tuple(made.shape)) == (type(given), (3, 4))
        assert str(made.dtype).endswith("float32")
        assert arrays.contiguous(given) is given
        assert type(arrays.contiguous(given[::2])) is type(given)
