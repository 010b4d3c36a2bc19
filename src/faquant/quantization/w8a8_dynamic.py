"""int8 weights for linears whose input is quantized per token."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class QuantizedWeight:
    """weight ≈ int8 [n, k] · scale [n, 1] (float32)."""

    weight: Tensor
    scale: Tensor


def quantize_weight(weight: Tensor) -> QuantizedWeight:
    """Round a weight [n, k] to the nearest of 255 steps, symmetric, one scale for each output channel."""
    peak = weight.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    scale = (peak / 127).float()
    return QuantizedWeight((weight / scale).round().clamp(-127, 127).to(torch.int8), scale)
