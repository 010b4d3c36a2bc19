"""What stands between the integer products of a layer, in one call each. A row's bits depend on nothing but the row."""

from . import _C, threads
from .arrays import Array, Floats, contiguous, empty


class RMSNorm:
    """x / rms(x) · weight (+ bias, which outlier suppression can leave), over the last dimension of float32 x.

    weight and bias are float32 [size].
    """

    def __init__(self, weight: Floats, eps: float, bias: Floats | None = None) -> None:
        self.weight, self.eps, self.bias = weight, eps, bias
        self.kernel = _C.RmsNorm(weight=weight, bias=bias, eps=eps)

    def __call__(self, x: Array) -> Array:
        return rms_norm(self.kernel, x)


def rms_norm(norm: _C.RmsNorm, x: Array, isa: str | None = None) -> Array:
    """x / rms(x) · weight (+ bias) over the last dimension of float32 x."""
    x = contiguous(x)
    out = empty(x, *x.shape)
    norm.apply(x, out, threads.count(), isa)
    return out


def rope(x: Array, cos: Array, sin: Array, isa: str | None = None) -> Array:
    """Rotate float32 x [tokens, heads, D] in place by tables [tokens, 1, D], with the bits of torch_backend.rope."""
    x = contiguous(x)
    _C.rope(x, contiguous(cos), contiguous(sin), threads.count(), isa)
    return x


def silu_times(gate: Array, up: Array, isa: str | None = None) -> Array:
    """gate / (1 + e^-gate) · up, float32; the factor of `up` is within 3e-7."""
    gate, up = contiguous(gate), contiguous(up)
    out = empty(gate, *gate.shape)
    _C.silu_times(gate, up, out, threads.count(), isa)
    return out
