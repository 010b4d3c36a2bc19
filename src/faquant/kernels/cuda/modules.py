"""Parts of a decoder on the GPU: linears, RMSNorm, embedding, with the bits of those in kernels/modules.py."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedError
from ..arrays import Integers, Stored
from ..quantizers import tensor_of
from ..tables import DynamicTable, FloatTable, LinearTable, StaticTable
from .elementwise import rms_norm
from .failures import explains
from .float_linear import BlockedWeight, float_linear
from .linear import SplitSums, int8_linear
from .rounding import DeviceNorm, InputRounding, RoundedInputs, round_inputs


def moved_to_device(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a method of an object with a `device` take tensors of any device, and return its result where the first one
    lies. So evaluation can keep streams and figures in the CPU's memory."""

    @explains
    @wraps(call)
    def run(self: Any, x: Tensor, *others: Any) -> Tensor:
        moved = [other.to(self.device) if isinstance(other, Tensor) else other for other in others]
        with current(self.device):
            return call(self, x.to(self.device), *moved).to(x.device)

    return run


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches kernels on the current GPU, which each thread chooses."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def on_device(x: Stored | Tensor, device: torch.device) -> Tensor:
    """A copy of a stored array on the device; uint16 is bfloat16."""
    return tensor_of(x).to(device)


class FloatLinear:
    """A float linear: weight [n, k] as stored, bias [n]. Products and sums have the order of the CPU's."""

    is_int8 = False

    def __init__(self, table: FloatTable, device: torch.device) -> None:
        self.device = device
        self._weight = BlockedWeight.of(on_device(table.weight, device))
        self.bias = None if table.bias is None else on_device(table.bias, device).float()

    @moved_to_device
    def __call__(self, x: Tensor) -> Tensor:
        return float_linear(x, self._weight, self.bias)

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


class Int8Linear:
    """An int8 linear with a scale per token or a calibrated one: weight int8 [n, k], `scale` float32 [n] of its outputs
    (deq_scale of a StaticTable), `bias` float32 [n] or `quant_bias` int32 [n], and `totals` int32 [n], Σ of each row of
    the weight, if each token has a zero point."""

    is_int8 = True

    def __init__(
        self, weight: Tensor, scale: Tensor, rounding: InputRounding, bias: Tensor | None, quant_bias: Tensor | None
    ) -> None:
        self.weight, self.scale, self.rounding = weight, scale, rounding
        self.bias, self.quant_bias = bias, quant_bias
        self.totals = weight.sum(1, dtype=torch.int32) if rounding.has_zeros else None
        self._stacked_with: tuple[list[Int8Linear], Int8Linear] | None = None

    @classmethod
    def of(cls, table: DynamicTable | StaticTable, device: torch.device) -> "Int8Linear":
        inputs = table.weight.shape[1]
        if inputs % 16:
            raise UnsupportedError(f"A linear has {inputs} inputs; a GPU needs a multiple of 16. Use the CPU.")
        weight, rounding = on_device(table.weight, device), InputRounding.of(table, device)
        if isinstance(table, DynamicTable):
            bias = None if table.bias is None else on_device(table.bias, device)
            return cls(weight, on_device(table.scale, device), rounding, bias, None)
        quant_bias = on_device(table.quant_bias, device)
        return cls(weight, on_device(table.deq_scale, device), rounding, None, quant_bias)

    @moved_to_device
    def __call__(self, x: Tensor) -> Tensor:
        return self.product(round_inputs(x, self.rounding))

    def product(
        self,
        inputs: RoundedInputs,
        residual: Tensor | None = None,
        out: Tensor | None = None,
        sums: SplitSums | None = None,
    ) -> Tensor:
        """The linear of inputs that its `rounding` has rounded, added to `residual` [tokens, n]."""
        tables = self.weight, self.scale, self.bias, self.quant_bias, self.totals
        return int8_linear(inputs, *tables, residual, out, sums)

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def nbytes(self) -> int:
        tables = self.weight, self.scale, self.bias, self.quant_bias, self.totals, self.rounding.multiplier
        return sum(table.nbytes for table in tables if table is not None)


def stacked(linears: Sequence[Int8Linear]) -> Int8Linear | None:
    """One linear with the outputs of several, whose tables become parts of its tables; None if their inputs are not
    rounded alike, or only some have a bias. The next call for them returns the same one."""
    first, *others = linears
    if first._stacked_with is not None and all(a is b for a, b in zip(first._stacked_with[0], others, strict=True)):
        return first._stacked_with[1]
    tables = {name: [getattr(each, name) for each in linears] for name in ("weight", "scale", "bias", "quant_bias")}
    if not all(_alike(each.rounding, first.rounding) for each in linears):
        return None
    whole: dict[str, Any] = {}
    for name, parts in tables.items():
        if all(part is None for part in parts):
            whole[name] = None
        elif any(part is None for part in parts):
            return None
        else:
            whole[name] = torch.cat(parts)
    sizes = [len(each.scale) for each in linears]
    for name, table in whole.items():
        if table is not None:
            for each, part in zip(linears, table.split(sizes), strict=True):
                setattr(each, name, part)
    together = Int8Linear(rounding=first.rounding, **whole)
    first._stacked_with = others, together
    return together


def _alike(a: InputRounding, b: InputRounding) -> bool:
    """Whether both round the same inputs to the same integers."""
    tables = [(getattr(a, name), getattr(b, name)) for name in ("multiplier", "scale", "offset")]
    return (a.hadamard_block, a.steps) == (b.hadamard_block, b.steps) and all(
        x is y or (x is not None and y is not None and torch.equal(x, y)) for x, y in tables
    )


def linear(table: LinearTable, device: torch.device) -> FloatLinear | Int8Linear:
    """The linear with these weights."""
    return FloatLinear(table, device) if isinstance(table, FloatTable) else Int8Linear.of(table, device)


class RMSNorm(DeviceNorm):
    """x / rms(x) · weight (+ bias) over the last dimension."""

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @moved_to_device
    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, self.bias)


class Embedding:
    """An embedding [vocab, hidden] in its stored dtype; rows are converted to float32."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __getitem__(self, tokens: Integers | Tensor) -> Tensor:
        return self.weight[torch.as_tensor(tokens).to(self.weight.device)].float()
