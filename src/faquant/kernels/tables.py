"""Plain tables of one linear, as every format of a checkpoint gives them and every backend takes them.

Arrays are NumPy's, as a file holds them; uint16 is bfloat16.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .arrays import Floats, Stored


@dataclass(frozen=True)
class FloatTable:
    """weight [n, k] of any float type, bias [n] likewise."""

    weight: Stored
    bias: Stored | None = None


@dataclass(frozen=True)
class DynamicTable:
    """W8A8 with a scale per token: int8 weight [n, k], float32 scale [n] and bias [n].

    hadamard_block: size of the blocks in which the input is transformed before it is rounded; 0: it is not.
    """

    weight: npt.NDArray[np.int8]
    scale: Floats
    bias: Floats | None = None
    hadamard_block: int = 0


@dataclass(frozen=True)
class StaticTable:
    """W8A8 with a calibrated scale: int8 weight [n, k], float32 input_scale [1] and input_offset [1], int32 quant_bias
    [n], which holds the bias and the zero point's part, and float32 deq_scale [n]."""

    weight: npt.NDArray[np.int8]
    input_scale: Floats
    input_offset: Floats
    quant_bias: npt.NDArray[np.int32]
    deq_scale: Floats


LinearTable: TypeAlias = FloatTable | DynamicTable | StaticTable
