"""Packed matrices (csrc/isa/kernels.h): one column of four rows of bytes, or of two of bfloat16, at a time, as
the products take them."""

import torch
from torch import Tensor

from .. import _C
from . import threads

PANEL: int = _C.PANEL
"""Columns of a packed matrix that stand together."""


def unpacked(x: Tensor, rows: int, columns: int) -> Tensor:
    """Matrices [..., rows, columns] that are packed in x [..., rows · columns]."""
    panels, in_word = [], 4 // x.element_size()
    for start in range(0, columns, PANEL):
        width = min(PANEL, columns - start)
        panel = x[..., start * rows : (start + width) * rows].reshape(*x.shape[:-1], rows // in_word, width, in_word)
        panels.append(panel.transpose(-1, -2).flatten(-3, -2))
    return torch.cat(panels, dim=-1)


class PackedWeight:
    """int8 weight [outputs, inputs] of a linear, packed for the kernels."""

    def __init__(self, weight: Tensor) -> None:
        self.shape = weight.shape
        outputs, inputs = weight.shape
        self._rows, self._columns = -(-inputs // 4) * 4, -(-outputs // _C.PADDING) * _C.PADDING
        self.values = torch.empty(self._rows * self._columns, dtype=torch.int8)
        self.excess = torch.empty(outputs, dtype=torch.int32)
        _C.pack_weight(weight.contiguous(), self.values, self.excess, threads.count())

    def unpack(self) -> Tensor:
        """int8 [outputs, inputs]."""
        outputs, inputs = self.shape
        return unpacked(self.values, self._rows, self._columns)[:inputs, :outputs].T.contiguous()

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held."""
        return self.values.nbytes + self.excess.nbytes
