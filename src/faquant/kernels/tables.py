"""Plain tables of one linear: what every checkpoint format returns and every backend accepts.

Arrays are NumPy arrays as stored in a file; uint16 is bfloat16.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .arrays import Floats, Stored

INPUT_STEPS = 127.0
"""Steps of a token's greatest input, with a scale per token."""

WIDE_INPUT_STEPS = 32639.0
"""The same for inputs of 16 bits: 127 · 256 + 127, the greatest number of two signed bytes."""


ASYMMETRIC_INPUT_STEPS = 255.0
"""Steps of a token's range, from its least to its greatest input, with a scale and a zero point per token."""


@dataclass(frozen=True)
class FloatTable:
    """weight [n, k] and bias [n], each of any float type."""

    weight: Stored
    bias: Stored | None = None


@dataclass(frozen=True)
class DynamicTable:
    """int8 weight [n, k], float32 scale [n] and bias [n]; inputs of 8 or 16 bits with a scale per token.

    hadamard_block: size of the Hadamard blocks on the input before quantization; 0: none.
    input_multiplier: float32 [k], by which the input is multiplied before all else (ModelOpt's pre_quant_scale).
    input_steps: a token's scale is its greatest input divided by this: 127, or 127.5 (compressed-tensors), or 32,639
        for inputs of 16 bits; or its range divided by 255, with a zero point.
    """

    weight: npt.NDArray[np.int8]
    scale: Floats
    bias: Floats | None = None
    hadamard_block: int = 0
    input_multiplier: Floats | None = None
    input_steps: float = INPUT_STEPS

    @property
    def is_wide(self) -> bool:
        """Whether inputs have 16 bits."""
        return self.input_steps == WIDE_INPUT_STEPS


@dataclass(frozen=True)
class StaticTable:
    """W8A8 with a calibrated scale: int8 weight [n, k], float32 input_scale [1] and input_offset [1], int32 quant_bias
    [n] with the bias and the zero point's correction, and float32 deq_scale [n].

    input_multiplier: float32 [k], by which the input is multiplied before all else (ModelOpt's pre_quant_scale).
    """

    weight: npt.NDArray[np.int8]
    input_scale: Floats
    input_offset: Floats
    quant_bias: npt.NDArray[np.int32]
    deq_scale: Floats
    input_multiplier: Floats | None = None


LinearTable: TypeAlias = FloatTable | DynamicTable | StaticTable
