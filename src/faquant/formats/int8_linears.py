"""int8 linears as quantizers store them: a weight, its scales, and perhaps a calibrated scale of the inputs."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ..checkpoint.model_config import ModelConfig
from ..errors import CheckpointError, UnsupportedError
from ..kernels.arrays import Floats
from ..kernels.isa import MAX_DOT_LENGTH
from ..kernels.tables import INPUT_STEPS, DynamicTable, LinearTable, StaticTable
from .base import Opened, Source, check_tensors, float_table
from .checked import Checked

MAX_SUM = (1 << 31) - 1


class Names(NamedTuple):
    """Names of the tensors of one linear beside `weight` and `bias`; None: there is no such tensor.

    weight_scale: [], [1], [n] or [n, 1], of any sign; input_scale and input_offset: [] or [1]; input_multiplier: [k].
    Without an input_scale, each token has its own scale.
    """

    weight_scale: str
    input_scale: str | None = None
    input_offset: str | None = None
    input_multiplier: str | None = None


class OpenedInt8(Opened):
    """A checkpoint without a description of each tensor: `linears` names the tensors of its int8 linears."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, source.open_files())
        self.linears: dict[str, Names] = {}
        self._zeros: list[str] = []

    def linear_type(self, name: str) -> str:
        names = self.linears.get(name)
        return "FLOAT" if names is None else "W8A8_DYNAMIC" if names.input_scale is None else "W8A8"

    def linear(self, name: str) -> LinearTable:
        if name in self.linears:
            return read_linear(self.checked, self.config, name, self.linears[name], self.input_steps)
        return float_table(self.checked, self.config, name)

    def offset(self, name: str, symmetric: bool) -> str | None:
        """The name of a tensor of zero points; None if symmetric. Then such a tensor must be zero (`check`)."""
        if not symmetric:
            return name
        if name in self.files:
            self._zeros.append(name)
        return None

    def check(self, tables: Iterable[str] = ()) -> None:
        """Check that the checkpoint has the tensors of float and int8 linears, and no others than `tables`.

        Raises:
            CheckpointError, UnsupportedError: as check_tensors and check_linear.
        """
        parts = {part for names in self.linears.values() for part in names if part is not None}
        self.ignored = check_tensors(self.config, self.files, parts.union(tables, self._zeros))
        for name in self._zeros:
            if self.checked.get(name).any():
                raise CheckpointError(f"{name} is not zero, but the description says that there are no zero points.")
        for name, names in self.linears.items():
            check_linear(self.checked, self.config, name, names)


def check_linear(checked: Checked, config: ModelConfig, name: str, names: Names) -> None:
    """Check the linear `name` except for the values of its weight.

    Raises:
        CheckpointError: a tensor is missing, or its shape, dtype or values are invalid.
        UnsupportedError: it has too many inputs.
    """
    n, k, has_bias = config.linears[name]
    checked.expect(f"{name}.weight", (n, k))
    if checked.files.dtype(f"{name}.weight") != "int8":
        raise CheckpointError(f"{name}.weight has dtype {checked.files.dtype(f'{name}.weight')}, but must be int8.")
    if k > MAX_DOT_LENGTH:
        raise UnsupportedError(f"{name} has {k} inputs; int32 sums are safe from overflow for up to {MAX_DOT_LENGTH}.")
    scale, found = _weight_scale(checked, names.weight_scale, n), _input_scale(checked, names)
    if found is not None:
        with np.errstate(over="ignore"):
            product = found[0] * scale
        checked.check_scales(f"{names.input_scale} · {names.weight_scale}", product, signed=True)
    if names.input_multiplier is not None:
        checked.scales(names.input_multiplier, (k,), signed=True)
    if has_bias:
        checked.floats(f"{name}.bias", (n,))


def read_linear(
    checked: Checked, config: ModelConfig, name: str, names: Names, input_steps: float = INPUT_STEPS
) -> LinearTable:
    """The linear `name`, which check_linear has checked; `input_steps` as in DynamicTable.

    Raises:
        CheckpointError: its bias exceeds int32 in steps of its scales.
    """
    n, k, has_bias = config.linears[name]
    weight = checked.get(f"{name}.weight", (n, k), "int8")
    scale = _weight_scale(checked, names.weight_scale, n)
    bias = checked.floats(f"{name}.bias", (n,)) if has_bias else None
    multiplier = None if names.input_multiplier is None else checked.floats(names.input_multiplier, (k,))
    found = _input_scale(checked, names)
    if found is None:
        return DynamicTable(weight, scale, bias, input_multiplier=multiplier, input_steps=input_steps)
    input_scale, input_offset = found
    deq_scale = input_scale * scale
    steps = -float(input_offset[0]) * weight.sum(1, dtype=np.int64).astype(np.float64)
    if bias is not None:
        steps += np.rint(bias.astype(np.float64) / deq_scale)
    if (np.abs(steps) > MAX_SUM - 128 * 128 * k).any():
        raise CheckpointError(f"{name}.bias is too large for the linear's scales: it exceeds int32 in their steps.")
    return StaticTable(
        weight, input_scale, input_offset, steps.astype(np.int32), deq_scale, input_multiplier=multiplier
    )


def _weight_scale(checked: Checked, name: str, n: int) -> Floats:
    """float32 [n]."""
    scale = checked.scales(name, checked.files.shape(name), signed=True)
    if scale.shape not in ((), (1,), (n,), (n, 1)):
        raise CheckpointError(
            f"{name} has shape {list(scale.shape)}, but must hold one value or one for each of {n} outputs."
        )
    return np.ascontiguousarray(np.broadcast_to(scale.reshape(-1), (n,)))


def _input_scale(checked: Checked, names: Names) -> tuple[Floats, Floats] | None:
    """Scale and zero point of the inputs, float32 [1] each."""
    if names.input_scale is None:
        return None
    shape = checked.files.shape(names.input_scale)
    if shape not in ((), (1,)):
        raise UnsupportedError(
            f"{names.input_scale} has shape {list(shape)}; only one scale for all inputs is supported."
        )
    scale = checked.positive(names.input_scale, shape).reshape(1)
    offset = np.zeros(1, np.float32)
    if names.input_offset is not None:
        offset = checked.floats(names.input_offset).reshape(-1)
    if offset.shape != (1,) or np.rint(offset[0]) != offset[0] or not -128 <= offset[0] <= 127:
        raise CheckpointError(f"{names.input_offset} must be one whole number from -128 to 127.")
    return scale, offset
