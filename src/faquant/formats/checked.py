"""Reads tensors of a checkpoint and checks their shapes and values."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from ..checkpoint.tensors import FLOAT_DTYPES
from ..errors import CheckpointError
from ..kernels.arrays import Floats, Stored, is_finite, widen


class Tensors(Protocol):
    """The interface of TensorFiles and TensorDict."""

    def __contains__(self, name: object) -> bool: ...
    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> str: ...
    def get(self, name: str) -> Stored: ...
    def read_all(self, names: Iterable[str]) -> dict[str, Stored]: ...


class Checked:
    """Tensors by their checkpoint names, as NumPy arrays in their stored dtype (uint16 is bfloat16)."""

    def __init__(self, files: Tensors) -> None:
        self.files = files
        self._finite: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def names(self) -> list[str]:
        return self.files.names()

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise CheckpointError unless the tensor exists with this shape; reads no data."""
        if name not in self.files:
            raise CheckpointError(f"The checkpoint has no tensor {name}, which its config.json implies.")
        found = self.files.shape(name)
        if found != shape:
            raise CheckpointError(f"{name} has shape {list(found)}, but config.json implies {list(shape)}.")

    def get(self, name: str, shape: tuple[int, ...] | None = None, dtype: str | None = None) -> Stored:
        """The tensor, after checking its shape and dtype."""
        if shape is not None:
            self.expect(name, shape)
        if dtype is not None and self.files.dtype(name) != dtype:
            raise CheckpointError(f"{name} has dtype {self.files.dtype(name)}, but must be {dtype}.")
        return self.files.get(name)

    def finite(self, name: str, shape: tuple[int, ...] | None = None) -> Stored:
        """As get; the values must be finite in float32, which is checked once."""
        value = self.get(name, shape)
        if name not in self._finite:
            with np.errstate(over="ignore"):
                used = widen(value) if value.dtype == np.float64 else value  # it may exceed float32
            if not is_finite(used):
                raise CheckpointError(f"{name} holds NaN or infinity. The file is damaged, or its calibration failed.")
            self._finite.add(name)
        return value

    def floats(self, name: str, shape: tuple[int, ...] | None = None) -> Floats:
        """As finite, converted to float32."""
        return widen(self.finite(name, shape))

    def positive(self, name: str, shape: tuple[int, ...]) -> Floats:
        """As floats; the scales must be greater than zero."""
        return self.scales(name, shape)

    def scales(self, name: str, shape: tuple[int, ...], signed: bool = False) -> Floats:
        """As floats; the scales must be greater than zero, or not zero if `signed`."""
        dtype = self.files.dtype(name) if name in self.files else None
        if dtype is not None and (dtype not in FLOAT_DTYPES or dtype == "float64"):
            raise CheckpointError(f"{name} must be float32, float16 or bfloat16, not {dtype}.")
        value = widen(self.get(name, shape))
        self.check_scales(name, value, signed)
        return value

    def check_scales(self, name: str, value: Floats, signed: bool = False) -> None:
        """Raise CheckpointError unless the scales are finite and greater than zero, or not zero if `signed`."""
        if not (is_finite(value) and (value != 0 if signed else value > 0).all()):
            raise CheckpointError(
                f"{name} holds a scale that is NaN, infinite{', or' if signed else ','} zero"
                f"{'' if signed else ' or negative'}. The file is damaged, or its calibration failed; quantize again."
            )
