"""Linears behind one call: float, int8 with a scale per token, int8 with a calibrated scale."""

from typing import Protocol

import torch
from torch import Tensor

from ..kernels.matmul import int8_matmul
from ..kernels.quantizers import hadamard, quantize_rows


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
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None, hadamard_block: int = 0) -> None:
        self.weight = weight
        self.scale = scale
        self.bias = bias
        self.hadamard_block = hadamard_block

    def __call__(self, x: Tensor) -> Tensor:
        if self.hadamard_block:
            x = hadamard(x, self.hadamard_block)
        x8, x_scale = quantize_rows(x)
        y = int8_matmul(x8, self.weight).float() * self.scale * x_scale[:, None]
        return y if self.bias is None else y + self.bias

    @property
    def nbytes(self) -> int:
        return _nbytes(self.weight, self.scale, self.bias)


class StaticLinear:
    """The ecosystem's W8A8: int8 weight [n, k], input scale and zero point [1], int32 quant_bias [n] that holds the
    bias and the zero point's part, float32 deq_scale [n]. y = (x8 · W8ᵀ + quant_bias) · deq_scale."""

    def __init__(
        self, weight: Tensor, input_scale: Tensor, input_offset: Tensor, quant_bias: Tensor, deq_scale: Tensor
    ) -> None:
        self.weight = weight
        self.input_scale = input_scale
        self.input_offset = input_offset
        self.quant_bias = quant_bias
        self.deq_scale = deq_scale

    def __call__(self, x: Tensor) -> Tensor:
        x8 = ((x / self.input_scale).round() + self.input_offset).clamp(-128, 127).to(torch.int8)
        return (int8_matmul(x8, self.weight) + self.quant_bias).float() * self.deq_scale

    @property
    def nbytes(self) -> int:
        return _nbytes(self.weight, self.input_scale, self.input_offset, self.quant_bias, self.deq_scale)


def _nbytes(*tensors: Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
