"""msModelSlim's static W8A8 arithmetic: one weight scale per output channel, one input scale and zero point.

Every step is computed in the model's dtype, and in this order, because msModelSlim rounds to that dtype after each step
(observed with msmodelslim 26.1.0). Computing in float64 would be more accurate, but different.
"""

import torch
from torch import Tensor

from ...errors import CheckpointError

SMALLEST_SCALE = torch.finfo(torch.float32).eps


def symmetric_scale(minimum: Tensor, maximum: Tensor) -> Tensor:
    """max(|minimum|, |maximum|, 0) / 127, but at least 2⁻²³; shape and dtype of `minimum`."""
    greatest = torch.maximum(-minimum.clamp(max=0), maximum.clamp(min=0))
    return (greatest / 127.0).clamp(min=SMALLEST_SCALE)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [n, k] as int8 in −127 … 127, and its scales [n, 1] in the weight's dtype.

    Raises:
        CheckpointError: a weight is not finite.
    """
    scale = symmetric_scale(weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True))
    if not scale.isfinite().all():
        raise CheckpointError("The weight has values that are not finite, so it cannot be quantized.")
    return (weight / scale).round().clamp(-127, 127).to(torch.int8), scale


def fake_quantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """The weight [n, k] that msModelSlim calibrates with: rounded to steps of `scale` [n, 1], in its own dtype.

    −128 can occur here, although it is never stored: if a float16 scale is so small that it lost precision, weight /
    scale exceeds 127.
    """
    return (weight / scale).round().clamp(-128, 127) * scale


class InputObserver:
    """Least and greatest input of a linear per calibration batch, averaged over the batches so far."""

    def __init__(self) -> None:
        self._minima: list[Tensor] = []
        self._maxima: list[Tensor] = []

    def update(self, x: Tensor) -> None:
        """Add one batch x, of any shape.

        Raises:
            CheckpointError: a value is not finite.
        """
        minimum, maximum = x.aminmax()
        if not (minimum.isfinite() and maximum.isfinite()):
            raise CheckpointError(
                f"Calibration overflowed: activations are not finite in {str(x.dtype).removeprefix('torch.')}. "
                "Convert the model to bfloat16 or float32 first."
            )
        self._minima.append(minimum)
        self._maxima.append(maximum)

    def range(self) -> tuple[Tensor, Tensor]:
        """Averaged minimum and maximum, each [] in the inputs' dtype.

        Raises:
            CheckpointError: nothing was observed.
        """
        if not self._minima:
            raise CheckpointError("A linear received no calibration data, so its input has no scale.")
        return torch.stack(self._minima).mean(), torch.stack(self._maxima).mean()


def input_scale_offset(minimum: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point, each [1] in the dtype of the range; x8 = x / scale + offset lies in −128 … 127.

    0 is always in the range. In 16 bits the zero point can miss the range's ends by a step or two.
    """
    minimum, maximum = minimum.clamp(max=0), maximum.clamp(min=0)
    scale = ((maximum - minimum) / 255).clamp(min=SMALLEST_SCALE)
    offset = (-minimum / scale).round() - 128
    return scale.reshape(1), offset.reshape(1)


def fake_quantize_input(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """x, of any shape, rounded to the steps of `scale` and `offset` [1], in its own dtype.

    The zero point is added before rounding, which differs from adding it afterwards if the sum needs more than 16 bits.
    """
    return ((x / scale + offset).round().clamp(-128, 127) - offset) * scale


def fake_quantize_linear(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, offset: Tensor) -> Tensor:
    """What msModelSlim computes for a linear during calibration: [tokens, n].

    Args:
        x: [tokens, k]; quantized here with the range observed so far, this batch included.
        weight: [n, k], as fake_quantize_weight returned it.
        bias: [n], in float.
        scale, offset: of the input, [1] each.
    """
    return torch.nn.functional.linear(fake_quantize_input(x, scale, offset), weight, bias)


def deq_scale(input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """float32 [n]: the value of one int32 step of the product, from input scale [1] and weight scales [n, 1] of one
    dtype.

    The product is rounded to that dtype. In float16 it can underflow (a row of zeros has the smallest scale);
    msModelSlim then writes 0, and a meaningless quant_bias. This function returns the float32 product instead.
    """
    product = (input_scale * weight_scale).squeeze(1).float()
    return torch.where(product > 0, product, (input_scale.float() * weight_scale.float()).squeeze(1))


def quant_bias(weight: Tensor, input_offset: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """int32 [n] to add to the int32 product: the bias in steps, minus the zero point's contribution.

    Args:
        weight: int8 [n, k].
        input_offset: [1].
        scale: what deq_scale returned, [n].
        bias: [n], or None.

    Raises:
        CheckpointError: a bias exceeds int32.
    """
    zero = weight.float().sum(dim=1) * input_offset.float()
    start = torch.zeros_like(scale) if bias is None else bias
    steps = (start / scale - zero).round()
    # NaN fails this, too.
    if not (steps.abs() < 1 << 31).all():
        raise CheckpointError("A bias is too large for the scale of its row: it exceeds int32 after quantization.")
    return steps.to(torch.int32)


def pack_deq_scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """deq_scale [n] as stored: float32 for bfloat16 models, else the float32 bits, as int32, widened to int64. The
    inverse is formats.msmodelslim.linears.unpack_deq_scale.
    """
    return scale if dtype == torch.bfloat16 else scale.view(torch.int32).to(torch.int64)
