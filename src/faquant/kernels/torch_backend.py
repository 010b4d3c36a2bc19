"""Float layers in torch, with transformers' steps in the model's dtype, for the recipes in msModelSlim's format, which
repeat that tool. int8 linears and caches use the CPU kernels, which also accept tensors.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, scaled_dot_product_attention, silu

from .arrays import Array, Integers, Stored
from .backend import Linear, Norm, Pages
from .cpu import CpuBackend
from .quantizers import tensor_of
from .tables import FloatTable, LinearTable


class TorchBackend(CpuBackend):
    """A backend that computes float parts in torch, in `dtype`."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def linear(self, table: LinearTable) -> Linear:
        if not isinstance(table, FloatTable):
            return super().linear(table)
        return TorchLinear(self._tensor(table.weight), None if table.bias is None else self._tensor(table.bias))

    def norm(self, weight: Array, eps: float, bias: Array | None = None) -> Norm:
        return TorchRMSNorm(self._tensor(weight), eps, None if bias is None else self._tensor(bias))

    def embedding(self, weight: Array) -> "TorchEmbedding":
        return TorchEmbedding(tensor_of(weight), self.dtype)

    def rope(self, x: Tensor, cos: Array, sin: Array) -> Tensor:
        return rope(x, *(torch.as_tensor(table).to(x.dtype) for table in (cos, sin)))

    def silu_times(self, gate: Tensor, up: Tensor) -> Tensor:
        return silu(gate) * up

    def gelu_times(self, gate: Tensor, up: Tensor) -> Tensor:
        return gelu(gate, approximate="tanh") * up

    def can_fuse(self, layer: object, pages: Pages) -> bool:
        return False

    def _tensor(self, x: Stored) -> Tensor:
        return tensor_of(x).to(self.dtype)


class TorchLinear:
    """A plain linear; weight [n, k] and bias [n] have x's dtype."""

    is_int8 = False

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    @property
    def nbytes(self) -> int:
        """Total size of its tensors in bytes."""
        return sum(tensor.nbytes for tensor in (self.weight, self.bias) if tensor is not None)


class TorchRMSNorm:
    """x / rms(x) · weight (+ bias, if outlier suppression added one), over the last dimension."""

    def __init__(self, weight: Tensor, eps: float, bias: Tensor | None = None) -> None:
        self.weight, self.eps, self.bias = weight, eps, bias

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        y = self.weight * wide.to(x.dtype)
        return y if self.bias is None else y + self.bias


class TorchEmbedding:
    """Rows of a tensor [vocab, hidden], in `dtype`."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.weight = weight
        self.dtype = dtype

    def __getitem__(self, tokens: Integers | Tensor) -> Tensor:
        return self.weight[torch.as_tensor(tokens)].to(self.dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [tokens, heads, D] with channel pairs (i, i + D/2) rotated by tables of shape [tokens, 1, D]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def float_attend(q: Tensor, k: Tensor, v: Tensor, start: int, window: int | None = None) -> Tensor:
    """Causal float attention of q [tokens, Hq, D] from position `start` over k, v [start + tokens, Hkv, D], all of one
    dtype."""
    tokens, heads, dim = q.shape
    length, kv_heads, _ = k.shape
    group = heads // kv_heads
    if start == 0 and window is None and length == tokens:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)))
        return scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1)
    # Invisible keys are left out, not multiplied by zero: they may be freed memory and hold NaN.
    oldest = 0 if window is None else max(0, start - window + 1)
    k, v = k[oldest:], v[oldest:]
    positions = torch.arange(start, start + tokens)[:, None]
    keys = torch.arange(oldest, length)
    visible = keys <= positions
    if window is not None:
        visible &= keys > positions - window
    rows = q.view(tokens, kv_heads, group, dim).permute(1, 0, 2, 3).flatten(1, 2)
    scores = (rows @ k.permute(1, 2, 0)).view(kv_heads, tokens, group, -1) / math.sqrt(dim)
    p = scores.masked_fill(~visible[:, None, :], -math.inf).softmax(-1)
    out = p.flatten(1, 2) @ v.transpose(0, 1)
    return out.view(kv_heads, tokens, group, dim).permute(1, 0, 2, 3).reshape(tokens, heads, dim)
