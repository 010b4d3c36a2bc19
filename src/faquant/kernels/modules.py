"""Parts of a decoder on the CPU, each one C++ call: linears (float, int8 with a scale per token, int8 with a calibrated
scale), RMSNorm, RoPE, silu(gate) · up. The bits of a row depend only on the row."""

import numpy as np
import numpy.typing as npt

from . import _C
from .arrays import Array, Floats, Stored, contiguous, empty
from .packing import PackedFloats, PackedWeight
from .tables import INPUT_STEPS
from .threads import ALL_THREADS


class FloatLinear:
    """A float linear: weight [n, k] as stored, bias float32 [n].

    y = ∑ x·w by fused multiply-adds in float32, k ascending, then + b: the bits of a row depend only on the row.
    """

    is_int8 = False

    def __init__(self, weight: Stored, bias: Floats | None = None) -> None:
        self.bias = bias
        self._packed = PackedFloats(weight)
        outputs, inputs = self._packed.shape
        self.kernel = _C.FloatLinear(inputs=inputs, outputs=outputs, weight=self._packed.values, bias=bias)

    def __call__(self, x: Array) -> Array:
        return _apply(self.kernel, x, self._packed.shape[0])

    @property
    def weight(self) -> Floats:
        """float32 [n, k], unpacked on each access."""
        return self._packed.unpack()

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes + _nbytes(self.bias)


class DynamicLinear:
    """int8 weight [n, k] with a float32 scale [n]; each token's input is quantized with its own scale, to 8 or 16 bits.

    `hadamard_block` > 0: the input is first transformed in blocks of that size (the weight already is).
    `input_multiplier` float32 [k]: the input is multiplied by it before all else.
    `input_steps`: a token's scale is its greatest input divided by this, 127 or 127.5, or 32,639 for 16 bits.
    The oracle is reference.dynamic_linear.
    """

    is_int8 = True

    def __init__(
        self,
        weight: npt.NDArray[np.int8],
        scale: Floats,
        bias: Floats | None = None,
        hadamard_block: int = 0,
        input_multiplier: Floats | None = None,
        input_steps: float = INPUT_STEPS,
    ) -> None:
        self.scale = scale
        self.bias = bias
        self.hadamard_block = hadamard_block
        self.input_multiplier = input_multiplier
        self.input_steps = input_steps
        self._packed = PackedWeight(weight)
        self.kernel = _kernel(
            self._packed,
            scale,
            bias=bias,
            hadamard_block=hadamard_block,
            input_multiplier=input_multiplier,
            input_steps=input_steps,
        )

    def __call__(self, x: Array) -> Array:
        return _apply(self.kernel, x, self._packed.shape[0])

    @property
    def weight(self) -> npt.NDArray[np.int8]:
        """int8 [n, k], unpacked on each access."""
        return self._packed.unpack()

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes + _nbytes(self.scale, self.bias, self.input_multiplier)


class StaticLinear:
    """msModelSlim's W8A8: int8 weight [n, k], input scale and zero point float32 [1], int32 quant_bias [n] with the
    bias and the zero point's correction, float32 deq_scale [n]. y = (x8 · W8ᵀ + quant_bias) · deq_scale.

    `input_multiplier` float32 [k]: the input is multiplied by it before it is quantized.
    The oracle is reference.static_linear.
    """

    is_int8 = True

    def __init__(
        self,
        weight: npt.NDArray[np.int8],
        input_scale: Floats,
        input_offset: Floats,
        quant_bias: npt.NDArray[np.int32],
        deq_scale: Floats,
        input_multiplier: Floats | None = None,
    ) -> None:
        self.input_scale = input_scale
        self.input_offset = input_offset
        self.quant_bias = quant_bias
        self.deq_scale = deq_scale
        self.input_multiplier = input_multiplier
        self._packed = PackedWeight(weight)
        self.kernel = _kernel(
            self._packed,
            deq_scale,
            input_scale=input_scale,
            input_offset=input_offset,
            quant_bias=quant_bias,
            input_multiplier=input_multiplier,
        )

    def __call__(self, x: Array) -> Array:
        return _apply(self.kernel, x, self._packed.shape[0])

    @property
    def weight(self) -> npt.NDArray[np.int8]:
        """int8 [n, k], unpacked on each access."""
        return self._packed.unpack()

    @property
    def nbytes(self) -> int:
        tables = self.input_scale, self.input_offset, self.quant_bias, self.deq_scale, self.input_multiplier
        return self._packed.nbytes + _nbytes(*tables)


class RMSNorm:
    """x / rms(x) · weight (+ bias, if outlier suppression added one), over the last dimension of float32 x.

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
    norm.apply(x, out, ALL_THREADS, isa)
    return out


def rope(x: Array, cos: Array, sin: Array, isa: str | None = None) -> Array:
    """Rotate float32 x [tokens, heads, D] in place by tables [tokens, 1, D], with the bits of torch_backend.rope."""
    x = contiguous(x)
    _C.rope(x, contiguous(cos), contiguous(sin), ALL_THREADS, isa)
    return x


def silu_times(gate: Array, up: Array, isa: str | None = None) -> Array:
    """gate / (1 + e^-gate) · up, float32; silu(gate) is exact to within 3e-7."""
    gate, up = contiguous(gate), contiguous(up)
    out = empty(gate, *gate.shape)
    _C.silu_times(gate, up, out, ALL_THREADS, isa)
    return out


def gelu_times(gate: Array, up: Array, isa: str | None = None) -> Array:
    """gelu(gate) · up, float32; gelu in its approximation by tanh, exact to within 1e-6."""
    gate, up = contiguous(gate), contiguous(up)
    out = empty(gate, *gate.shape)
    _C.gelu_times(gate, up, out, ALL_THREADS, isa)
    return out


def _kernel(
    packed: PackedWeight,
    scale: Floats,
    *,
    bias: Floats | None = None,
    hadamard_block: int = 0,
    input_scale: Floats | None = None,
    input_offset: Floats | None = None,
    quant_bias: npt.NDArray[np.int32] | None = None,
    input_multiplier: Floats | None = None,
    input_steps: float = INPUT_STEPS,
) -> _C.Int8Linear:
    outputs, inputs = packed.shape
    return _C.Int8Linear(
        inputs=inputs,
        outputs=outputs,
        weight=packed.values,
        totals=packed.totals,
        scale=scale,
        bias=bias,
        hadamard_block=hadamard_block,
        input_scale=input_scale,
        input_offset=input_offset,
        quant_bias=quant_bias,
        input_multiplier=input_multiplier,
        input_steps=input_steps,
    )


def _apply(kernel: _C.Int8Linear | _C.FloatLinear, x: Array, outputs: int) -> Array:
    x = contiguous(x)
    out = empty(x, len(x), outputs)
    kernel.apply(x, out, ALL_THREADS, None)
    return out


def _nbytes(*arrays: Stored | None) -> int:
    return sum(array.nbytes for array in arrays if array is not None)
