"""Linears behind one call: float, int8 with a scale per token, int8 with a calibrated scale."""

from typing import Protocol

import torch
from torch import Tensor

from ..kernels import _C, threads
from ..kernels.addresses import address
from ..kernels.packing import PackedWeight


class Linear(Protocol):
    """y = x · Wᵀ + b on [tokens, k], giving [tokens, n]."""

    def __call__(self, x: Tensor) -> Tensor: ...

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""


class FloatLinear:
    """A plain linear; weight [n, k] and bias [n] have x's dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight, self.bias)

    @property
    def nbytes(self) -> int:
        return _nbytes(self.weight, self.bias)


class DynamicLinear:
    """int8 weight [n, k] with a float32 scale [n]; each token's input is quantized with its own scale.

    `hadamard_block` > 0: the input is first transformed in blocks of that size (the weight already is).
    The oracle is reference.dynamic_linear.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None, hadamard_block: int = 0) -> None:
        self.scale = scale
        self.bias = bias
        self.hadamard_block = hadamard_block
        self._packed = PackedWeight(weight)
        self._sizes = weight.shape[1], weight.shape[0]
        self.kernel = _kernel(self._packed, scale, bias=bias, hadamard_block=hadamard_block)

    def __call__(self, x: Tensor) -> Tensor:
        return _apply(self.kernel, x, *self._sizes)

    @property
    def weight(self) -> Tensor:
        """int8 [n, k], unpacked anew."""
        return self._packed.unpack()

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes + _nbytes(self.scale, self.bias)


class StaticLinear:
    """The ecosystem's W8A8: int8 weight [n, k], input scale and zero point [1], int32 quant_bias [n] that holds the
    bias and the zero point's part, float32 deq_scale [n]. y = (x8 · W8ᵀ + quant_bias) · deq_scale.

    The oracle is reference.static_linear.
    """

    def __init__(
        self, weight: Tensor, input_scale: Tensor, input_offset: Tensor, quant_bias: Tensor, deq_scale: Tensor
    ) -> None:
        self.input_scale = input_scale
        self.input_offset = input_offset
        self.quant_bias = quant_bias
        self.deq_scale = deq_scale
        self._packed = PackedWeight(weight)
        self._sizes = weight.shape[1], weight.shape[0]
        self.kernel = _kernel(
            self._packed,
            deq_scale,
            input_scale=input_scale.float().view(1),
            input_offset=input_offset.float().view(1),
            quant_bias=quant_bias,
        )

    def __call__(self, x: Tensor) -> Tensor:
        return _apply(self.kernel, x, *self._sizes)

    @property
    def weight(self) -> Tensor:
        """int8 [n, k], unpacked anew."""
        return self._packed.unpack()

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes + _nbytes(self.input_scale, self.input_offset, self.quant_bias, self.deq_scale)


def _kernel(
    packed: PackedWeight,
    scale: Tensor,
    *,
    bias: Tensor | None = None,
    hadamard_block: int = 0,
    input_scale: Tensor | None = None,
    input_offset: Tensor | None = None,
    quant_bias: Tensor | None = None,
) -> _C.Int8Linear:
    outputs, inputs = packed.shape
    return _C.Int8Linear(
        inputs=inputs,
        outputs=outputs,
        weight=packed.values,
        excess=packed.excess,
        scale=scale,
        bias=bias,
        hadamard_block=hadamard_block,
        input_scale=input_scale,
        input_offset=input_offset,
        quant_bias=quant_bias,
    )


def _apply(kernel: _C.Int8Linear, x: Tensor, inputs: int, outputs: int) -> Tensor:
    x = x.contiguous()
    rows = x.shape[0]
    out = x.new_empty(rows, outputs)
    kernel.apply(address("x", x, torch.float32, rows, inputs), out.data_ptr(), rows, threads.count(), None)
    return out


def _nbytes(*tensors: Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
