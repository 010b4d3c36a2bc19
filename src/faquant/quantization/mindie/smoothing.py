"""Outlier suppression for MindIE, all of it folded into the weights: the float model is unchanged, and there is nothing
more to compute at run time.

Channels are scaled and shifted to the same range around 0, because they share one static scale: after a norm by the
norm's weight and bias, in each head of V by v_proj and o_proj. SmoothQuant (arXiv 2211.10438) scales in this way;
Outlier Suppression+ (arXiv 2304.09145) also shifts.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...kernels.backend import Norm
from ...kernels.quantizers import hadamard
from ...kernels.scheme import hadamard_block
from ...kernels.torch_backend import TorchLinear, TorchRMSNorm
from ...model.decoder import DecoderLayer
from ..rounding import balance

_RANGE, _WEIGHT = 0.9, 0.1
"""Exponents of the inputs' ranges and of the weights' peaks in the divisors of a norm's output channels. 1 and 0 would
be best for the observed inputs, but leave no margin for others, and cost the weights more; measured on SmolLM2."""
_LEAST = 1e-6
"""Lower bound for ranges and peaks, relative to the largest."""


class Span:
    """The least and greatest value of each channel over all tokens."""

    def __init__(self) -> None:
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Add x [tokens, …]."""
        low, high = x.aminmax(dim=0)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def ends(self) -> tuple[Tensor, Tensor]:
        """Least and greatest, float64 […]."""
        if self.low is None or self.high is None:
            raise ValueError("no data was observed")
        return self.low.double(), self.high.double()


def fold_norm(
    norm: Norm, linears: Sequence[TorchLinear], span: Span, dtype: torch.dtype, shift: bool
) -> tuple[TorchRMSNorm, list[TorchLinear]]:
    """Change a norm's outputs h to h ⊘ d - c, and fold the inverse into the linears.

    Args:
        norm: without a bias.
        linears: all linears that read its output.
        span: of its outputs.
        dtype: of the stored norm's weight; the linears compensate for its rounding.
        shift: whether c is the middle of the range, which needs biases; otherwise c is 0.
    """
    if not isinstance(norm, TorchRMSNorm):
        raise TypeError(f"smoothing needs a float norm, not a {type(norm).__name__}")
    low, high = span.ends()
    peaks = torch.stack([linear.weight.abs().amax(0) for linear in linears]).amax(0).double()
    reach = (high - low) / 2 if shift else torch.maximum(low.abs(), high.abs())
    divisor = _floored(reach).pow(_RANGE) / _floored(peaks).pow(_WEIGHT)
    old = norm.weight.double()
    new = (old / divisor).to(dtype).double()
    divisor = torch.where(new == 0, divisor, old / new)
    center = ((low + high) / 2 / divisor if shift else torch.zeros_like(low)).to(dtype).double()
    # Where the norm's weight is 0, its output is 0.
    center = center.masked_fill(new == 0, 0.0)
    folded = [_linear(x.weight.double() * divisor, x.bias, center) for x in linears]
    return TorchRMSNorm(new.float(), norm.eps, -center.float() if shift else None), folded


def fold_values(
    layer: DecoderLayer, values: Sequence[Tensor], outputs: Sequence[Tensor], shift: bool
) -> tuple[TorchLinear, TorchLinear]:
    """v_proj and o_proj for v' = v·M - c, with a matrix M and a center c per head.

    M balances V's channels against o_proj's weights, spreads them by a Hadamard transform, and divides each by its
    range; then it divides each head by the range of its outputs, which share one static scale. The output of the
    attention is a weighted mean of the values, so it is shifted like them.

    Args:
        layer: with float v_proj and o_proj.
        values: v of each prompt, [tokens, Hkv, D].
        outputs: of the attention, [tokens, Hq, D].
        shift: whether c is the middle of each channel's range, which needs biases; otherwise c is 0.
    """
    v_proj, o_proj = float_linear_of(layer.v_proj), float_linear_of(layer.o_proj)
    dim = layer.head_dim
    v, o = torch.cat(list(values)).double(), torch.cat(list(outputs)).double()
    kv_heads, heads = v.shape[1], o.shape[1]
    group = heads // kv_heads
    readers = o_proj.weight.double().view(-1, kv_heads, group, dim)
    block = hadamard_block(dim)
    spread = balance(v.var(0, correction=0).flatten(), readers.square().sum((0, 2)).flatten()).sqrt().view(-1, 1, dim)
    v = hadamard(v / spread.squeeze(1), block)
    low, high = v.aminmax(dim=0)
    center = (low + high) / 2 if shift else torch.zeros_like(low)
    reach = _floored((high - low) / 2 if shift else v.abs().amax(0))
    mapped = (hadamard(o.view(-1, kv_heads, group, dim) / spread, block) - center[:, None]) / reach[:, None]
    reach = reach * _floored(mapped.abs().amax((0, 2, 3)))[:, None]
    center = (center / reach).flatten()

    rows = v_proj.weight.double().view(kv_heads, dim, -1).mT / spread
    weight = (hadamard(rows, block) / reach[:, None]).mT.flatten(0, 1)
    bias = None
    if v_proj.bias is not None:
        bias = (hadamard(v_proj.bias.double().view(kv_heads, dim) / spread.squeeze(1), block) / reach).flatten()
    if shift:
        bias = -center if bias is None else bias - center
    folded = TorchLinear(weight.float(), None if bias is None else bias.float())
    # M⁻¹ inverts M's factors in reverse order; the Hadamard transform is its own inverse.
    back = hadamard(readers * spread, block) * reach[:, None]
    shifts = center.view(kv_heads, 1, dim).expand(-1, group, -1).flatten()
    return folded, _linear(back.flatten(1), o_proj.bias, shifts)


def float_linear_of(linear: object) -> TorchLinear:
    """The linear, after checking that it is float."""
    if not isinstance(linear, TorchLinear):
        raise TypeError(f"smoothing needs a float linear, not a {type(linear).__name__}")
    return linear


def fold(
    layer: DecoderLayer,
    normed: tuple[Span, Span],
    values: Sequence[Tensor],
    outputs: Sequence[Tensor],
    dtype: torch.dtype,
    can_shift: Callable[..., bool],
) -> DecoderLayer:
    """Fold all of the above into the float `layer`; it still computes the same function.

    Args:
        normed: the spans of the outputs of attention_norm and mlp_norm.
        values, outputs: as for fold_values.
        dtype: of the stored norms.
        can_shift: whether the linears of those attribute names can all have biases.
    """
    v_proj, o_proj = fold_values(layer, values, outputs, can_shift("v_proj", "o_proj"))
    before, (q_proj, k_proj, v_proj) = fold_norm(
        layer.attention_norm,
        (float_linear_of(layer.q_proj), float_linear_of(layer.k_proj), v_proj),
        normed[0],
        dtype,
        can_shift("q_proj", "k_proj", "v_proj"),
    )
    after, (gate_proj, up_proj) = fold_norm(
        layer.mlp_norm,
        (float_linear_of(layer.gate_proj), float_linear_of(layer.up_proj)),
        normed[1],
        dtype,
        can_shift("gate_proj", "up_proj"),
    )
    return replace(
        layer,
        attention_norm=before,
        q_proj=q_proj,
        k_proj=k_proj,
        v_proj=v_proj,
        o_proj=o_proj,
        mlp_norm=after,
        gate_proj=gate_proj,
        up_proj=up_proj,
    )


def _linear(weight: Tensor, bias: Tensor | None, shift: Tensor) -> TorchLinear:
    """A linear with float64 `weight` [n, k] that adds `shift` [k] to its inputs."""
    if not shift.any():
        return TorchLinear(weight.float(), bias)
    added = weight @ shift
    return TorchLinear(weight.float(), (added if bias is None else bias.double() + added).float())


def _floored(x: Tensor) -> Tensor:
    return x.clamp_min(_LEAST * x.amax().clamp_min(1e-30))
