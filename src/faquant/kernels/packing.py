"""Packed matrices (csrc/isa/kernels.h), in the order in which the kernels read them: for each column, four rows of
int8, two of bfloat16 or one of float32 at a time."""

import numpy as np
import numpy.typing as npt

from . import _C
from .arrays import Floats, Stored, widen
from .memory import Arena
from .threads import ALL_THREADS

WEIGHTS = Arena()
PANEL: int = _C.PANEL
"""Columns per panel of a packed matrix."""


def unpacked(x: Stored, rows: int, columns: int) -> Stored:
    """Unpack x [..., rows · columns] into matrices [..., rows, columns]."""
    panels, in_word = [], 4 // x.itemsize
    for start in range(0, columns, PANEL):
        width = min(PANEL, columns - start)
        panel = x[..., start * rows : (start + width) * rows].reshape(*x.shape[:-1], rows // in_word, width, in_word)
        panels.append(panel.swapaxes(-1, -2).reshape(*x.shape[:-1], rows, width))
    return np.concatenate(panels, axis=-1)


class PackedWeight:
    """int8 weight [outputs, inputs] of a linear, packed for the kernels."""

    def __init__(self, weight: npt.NDArray[np.int8]) -> None:
        self.shape = outputs, inputs = weight.shape
        self._rows, self._columns = -(-inputs // 4) * 4, -(-outputs // _C.PADDING) * _C.PADDING
        self.values = WEIGHTS.empty(self._rows * self._columns, np.int8)
        self.totals = np.empty(outputs, np.int32)
        _C.pack_weight(np.ascontiguousarray(weight), self.values, self.totals, ALL_THREADS)

    def unpack(self) -> npt.NDArray[np.int8]:
        """int8 [outputs, inputs]."""
        outputs, inputs = self.shape
        return np.ascontiguousarray(unpacked(self.values, self._rows, self._columns)[:inputs, :outputs].T)

    @property
    def nbytes(self) -> int:
        """Total size in bytes."""
        return self.values.nbytes + self.totals.nbytes


class PackedFloats:
    """Float weight [outputs, inputs] of a linear, packed for the kernels: bfloat16 as it is, other types as float32."""

    def __init__(self, weight: Stored) -> None:
        self.shape = outputs, inputs = weight.shape
        weight = np.ascontiguousarray(weight if weight.dtype == np.uint16 else widen(weight))
        in_word = 4 // weight.itemsize
        self._rows, self._columns = -(-inputs // in_word) * in_word, -(-outputs // _C.PADDING) * _C.PADDING
        self.values = WEIGHTS.empty(self._rows * self._columns, weight.dtype)
        _C.pack_float_weight(weight, self.values, ALL_THREADS)

    def unpack(self) -> Floats:
        """float32 [outputs, inputs]."""
        outputs, inputs = self.shape
        return np.ascontiguousarray(widen(unpacked(self.values, self._rows, self._columns))[:inputs, :outputs].T)

    @property
    def nbytes(self) -> int:
        """Total size in bytes."""
        return self.values.nbytes
