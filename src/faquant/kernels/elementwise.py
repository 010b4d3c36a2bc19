"""What stands between the integer products of a layer, in one call each. A row's bits depend on nothing but the row.

In torch each is four to eight operations of some 10 µs, more than a small model's products take in a decode step.
"""

import torch
from torch import Tensor

from . import _C, threads
from .addresses import address


def rms_norm(norm: _C.RmsNorm, x: Tensor, isa: str | None = None) -> Tensor:
    """x / rms(x) · weight (+ bias) over the last dimension of float32 x."""
    x = x.contiguous()
    out = torch.empty_like(x)
    rows = x.numel() // norm.size
    source = address("x", x, torch.float32, *x.shape[:-1], norm.size)
    norm.apply(source, out.data_ptr(), rows, threads.count(), isa)
    return out


def rope(x: Tensor, cos: Tensor, sin: Tensor, isa: str | None = None) -> Tensor:
    """x [tokens, heads, D], float32, turned in place by tables [tokens, 1, D], with the bits of rope.apply_rope."""
    x = x.contiguous()
    tokens, heads, dim = x.shape
    _C.rope(
        address("x", x, torch.float32, tokens, heads, dim),
        address("cos", cos, torch.float32, tokens, 1, dim),
        address("sin", sin, torch.float32, tokens, 1, dim),
        tokens,
        heads,
        dim,
        threads.count(),
        isa,
    )
    return x


def silu_times(gate: Tensor, up: Tensor, isa: str | None = None) -> Tensor:
    """gate / (1 + e^-gate) · up, float32; the factor of `up` is within 3e-7."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    _C.silu_times(
        address("gate", gate, torch.float32, *up.shape),
        address("up", up, torch.float32, *up.shape),
        gate.numel(),
        out.data_ptr(),
        threads.count(),
        isa,
    )
    return out
