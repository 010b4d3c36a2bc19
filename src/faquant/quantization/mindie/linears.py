"""Linears under calibration: they observe their inputs, and then return the tensors for the checkpoint."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...kernels.backend import Linear
from ...kernels.torch_backend import TorchLinear
from ..rounding import Gram, QuantizedWeight, by_outputs, round_to_nearest, round_with_compensation
from ..tensors import NamedTensor
from . import w8a8
from .smoothing import Span


class MindieLinear:
    """A float linear under calibration: it observes its input, and computes with rounded weight and input."""

    is_int8 = False

    def __init__(self, linear: TorchLinear) -> None:
        self._bias = linear.bias
        self._weight, self._weight_scale = w8a8.quantize_weight(linear.weight)
        self._rounded = w8a8.fake_quantize_weight(linear.weight, self._weight_scale)
        self._observer = w8a8.InputObserver()

    def observe(self, x: Tensor) -> None:
        """Add the range of one batch of inputs."""
        self._observer.update(x)

    def __call__(self, x: Tensor) -> Tensor:
        self.observe(x)
        return w8a8.fake_quantize_linear(x, self._rounded, self._bias, *self._input_scale_offset())

    @property
    def nbytes(self) -> int:
        """Total size of its tensors in bytes."""
        return sum(t.nbytes for t in (self._weight, self._weight_scale, self._rounded, self._bias) if t is not None)

    def tensors(self, name: str) -> Iterator[NamedTensor]:
        """Its tensors in the checkpoint, under `name`."""
        input_scale, input_offset = self._input_scale_offset()
        scale = w8a8.deq_scale(input_scale, self._weight_scale)
        bias = w8a8.quant_bias(self._weight, input_offset, scale, self._bias)
        yield f"{name}.weight", "W8A8", self._weight
        if self._bias is not None:
            yield f"{name}.bias", "FLOAT", self._bias
        yield f"{name}.weight_scale", "W8A8", self._weight_scale
        yield f"{name}.weight_offset", "W8A8", torch.zeros_like(self._weight_scale)
        yield f"{name}.input_scale", "W8A8", input_scale
        yield f"{name}.input_offset", "W8A8", input_offset
        yield f"{name}.quant_bias", "W8A8", bias
        yield f"{name}.deq_scale", "W8A8", w8a8.pack_deq_scale(scale, input_scale.dtype)

    def _input_scale_offset(self) -> tuple[Tensor, Tensor]:
        return w8a8.input_scale_offset(*self._observer.range())


class SmoothedLinear:
    """A folded float linear after calibration, with the range of its inputs and how its errors are compensated; None:
    not."""

    is_int8 = False

    def __init__(
        self, linear: TorchLinear, compensation: Sequence[Tensor] | None, span: Span, dtype: torch.dtype
    ) -> None:
        self._linear = linear
        self._compensation = compensation
        self._span = span
        self._dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:
        return self._linear(x)

    @property
    def nbytes(self) -> int:
        """Total size of its tensors in bytes."""
        return self._linear.nbytes

    def tensors(self, name: str, has_bias: bool) -> Iterator[NamedTensor]:
        """Its tensors in the checkpoint, under `name`. A bias that the model does not have is only in quant_bias."""
        weight, bias, dtype = self._linear.weight, self._linear.bias, self._dtype
        rounded = by_outputs(slice(0, len(weight)), self._rounded)
        low, high = self._span.ends()
        input_scale, input_offset = w8a8.input_scale_offset(low.amin().to(dtype), high.amax().to(dtype))
        # Not rounded to the dtype as by msModelSlim: MindIE reads this tensor, not weight_scale.
        scale = input_scale.float() * rounded.scale.squeeze(1)
        weight_scale = rounded.scale.to(dtype)
        yield f"{name}.weight", "W8A8", rounded.weight
        if has_bias and bias is not None:
            yield f"{name}.bias", "FLOAT", bias.to(dtype)
        yield f"{name}.weight_scale", "W8A8", weight_scale
        yield f"{name}.weight_offset", "W8A8", torch.zeros_like(weight_scale)
        yield f"{name}.input_scale", "W8A8", input_scale
        yield f"{name}.input_offset", "W8A8", input_offset
        yield f"{name}.quant_bias", "W8A8", w8a8.quant_bias(rounded.weight, input_offset, scale, bias)
        yield f"{name}.deq_scale", "W8A8", w8a8.pack_deq_scale(scale, dtype)

    def _rounded(self, outputs: slice) -> QuantizedWeight:
        weight = self._linear.weight[outputs]
        if self._compensation is None:
            return round_to_nearest(weight)
        return round_with_compensation(weight.double(), self._compensation)


class ObservedLinear:
    """A float linear that observes its inputs."""

    is_int8 = False

    def __init__(self, linear: Linear, span: Span, gram: Gram | None = None) -> None:
        self.linear = linear
        self.span = span
        self.gram = gram

    def __call__(self, x: Tensor) -> Tensor:
        if not x.isfinite().all():
            raise CheckpointError("Calibration overflowed: activations are not finite. Are the weights damaged?")
        self.span.add(x)
        if self.gram is not None:
            self.gram.add(x)
        return self.linear(x)

    @property
    def nbytes(self) -> int:
        return self.linear.nbytes
