"""From floats to int8 and back, in plain torch: scales of rows, K's map and its inverse, the Hadamard transform.

Everything is computed row by row in a fixed order, so the result of a row does not depend on its neighbors. See
README.md in this directory for the mathematics.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .arrays import Stored
from .scheme import AttentionScheme
from .tables import ASYMMETRIC_INPUT_STEPS, INPUT_STEPS, WIDE_INPUT_STEPS

_TABLES = (
    "k_center",
    "k_equalizer",
    "rotation_sign",
    "q_scale",
    "k_scale",
    "k_offset",
    "v_scale",
    "v_offset",
)

SMALLEST_SCALE = 2.0**-24
"""The smallest positive float16, so that no stored scale is zero."""


def tensor_of(x: Stored | Tensor) -> Tensor:
    """A stored NumPy array as a tensor with the same values; uint16 is bfloat16. Shares the memory of x if it is
    writable. Returns tensors unchanged."""
    if isinstance(x, Tensor):
        return x
    writable = x if x.flags.writeable else x.copy()
    if x.dtype == "uint16":
        return torch.from_numpy(writable.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(writable)


def in_torch(scheme: AttentionScheme) -> AttentionScheme:
    """The scheme with its tables as tensors."""
    tables = {name: getattr(scheme, name) for name in _TABLES}
    if all(table is None or isinstance(table, Tensor) for table in tables.values()):
        return scheme
    tensors: dict[str, Any] = {name: None if x is None else tensor_of(x) for name, x in tables.items()}
    return replace(scheme, **tensors)


def hadamard(x: Tensor, block: int) -> Tensor:
    """Orthonormal Walsh-Hadamard transform of each `block` consecutive elements of the last dimension.

    `block` is a power of two that divides the last dimension. The transform is its own inverse.
    Computed by butterflies, because the rounding of a matrix product depends on the number of rows.
    """
    shape = x.shape
    half = 1
    while half < block:
        pairs = x.reshape(-1, shape[-1] // (2 * half), 2, half)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        x = torch.empty_like(pairs)
        torch.add(a, b, out=x[:, :, 0])
        torch.sub(a, b, out=x[:, :, 1])
        half *= 2
    return x.reshape(shape) * (1.0 / math.sqrt(block))


def quantize_rows(x: Tensor, steps: float = INPUT_STEPS) -> tuple[Tensor, Tensor]:
    """Symmetric integers with one scale per row of the last dimension, the greatest value divided by `steps`, 127,
    127.5 or 32,639: x ≈ integers · scale.

    Returns int8 [..., n] in [-127, 127], or [-128, 127] for 127.5 steps, or int16 in [-32639, 32639]; and float32
    scales [...].
    """
    scale = x.abs().amax(-1).clamp_min(1e-30) / steps
    integers = (x / scale[..., None]).round_().clamp_(-math.ceil(steps), math.floor(steps))
    return integers.to(torch.int16 if steps == WIDE_INPUT_STEPS else torch.int8), scale


def quantize_rows_asymmetric(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """256 integers from the least to the greatest value of each row, 0 among them: x ≈ (integers − zero) · scale.

    Returns int8 [..., n], float32 scales [...], and int8 zeros [...].
    """
    low, high = x.amin(-1).clamp_max(0.0), x.amax(-1).clamp_min(0.0)
    scale = (high - low).clamp_min(1e-30) / ASYMMETRIC_INPUT_STEPS
    zero = (-low / scale).round().clamp(0.0, 255.0)
    # Two values of half a step are both rounded up, which is one step too many.
    steps = ((x / scale[..., None]).round() + zero[..., None]).clamp_(0.0, 255.0)
    return (steps - 128).to(torch.int8), scale, (zero - 128).to(torch.int8)


def quantize_rows_fp16(x: Tensor) -> tuple[Tensor, Tensor]:
    """As quantize_rows, with float16 scales rounded up, so that no value leaves the range."""
    exact = (x.abs().amax(-1) / 127.0).clamp(SMALLEST_SCALE, 65504.0)
    scale = exact.half()
    bits = scale.view(torch.int16)
    scale = torch.where(scale.float() < exact, (bits + 1).view(torch.float16), scale)
    return (x / scale.float()[..., None]).round_().clamp_(-127, 127).to(torch.int8), scale


def int8_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Exact integer product x · weightᵀ: int8 [m, k], int8 [n, k] → int32 [m, n]."""
    # A float32 holds sums of 1,024 products of two bytes exactly: 1024 · 128 · 128 = 2^24.
    total = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.int32)
    for k in range(0, x.shape[1], 1024):
        total += (x[:, k : k + 1024].float() @ weight[:, k : k + 1024].float().T).to(torch.int32)
    return total


def int16_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Exact integer product x · weightᵀ: int16 [m, k], int8 [n, k] → float64 [m, n], whole numbers."""
    # 65,536 products of 16 and 8 bits are below 2^39.
    return x.double() @ weight.double().T


def map_k(k: Tensor, scheme: AttentionScheme) -> Tensor:
    """K's map before quantization: Hᵀ((k - c) ⊘ e), on [tokens, Hkv, D] after RoPE."""
    scheme = in_torch(scheme)
    if scheme.k_center is not None:
        k = k - scheme.k_center
    if scheme.k_equalizer is not None:
        k = k / scheme.k_equalizer
    return _rotate(k, scheme)


def unmap_k(k: Tensor, scheme: AttentionScheme) -> Tensor:
    """The inverse of map_k."""
    scheme = in_torch(scheme)
    if scheme.rotation_block:
        k = hadamard(k, scheme.rotation_block)
        if scheme.rotation_sign is not None:
            k = k * scheme.rotation_sign
    if scheme.k_equalizer is not None:
        k = k * scheme.k_equalizer
    if scheme.k_center is not None:
        k = k + scheme.k_center
    return k


def map_q(q: Tensor, scheme: AttentionScheme) -> Tensor:
    """The inverse transpose of K's map (without the center, which cancels in the softmax), on [tokens, Hq, D].

    Also folds in K's scale per channel, so that q'·k8 needs none.
    """
    scheme = in_torch(scheme)
    if scheme.k_equalizer is not None:
        q = q * per_query_head(scheme.k_equalizer, scheme)
    q = _rotate(q, scheme)
    if scheme.q_scale is not None and scheme.q_scale.shape[-1] > 1:
        # An integer product cannot have a scale per channel of q: round to that grid, then quantize dynamically.
        q = _quantize_static(q, scheme.q_scale, None) * scheme.q_scale
    if scheme.k_scale is not None and scheme.k_scale.shape[-1] > 1:
        q = q * per_query_head(scheme.k_scale, scheme)
    return q


def unmap_q(q: Tensor, scheme: AttentionScheme) -> Tensor:
    """The inverse of map_q, except for its rounding."""
    scheme = in_torch(scheme)
    if scheme.k_scale is not None and scheme.k_scale.shape[-1] > 1:
        q = q / per_query_head(scheme.k_scale, scheme)
    if scheme.rotation_block:
        q = hadamard(q, scheme.rotation_block)
        if scheme.rotation_sign is not None:
            q = q * scheme.rotation_sign
    if scheme.k_equalizer is not None:
        q = q / per_query_head(scheme.k_equalizer, scheme)
    return q


def dequantize_q(q8: Tensor, scale: Tensor, scheme: AttentionScheme) -> Tensor:
    """Dequantized q in the basis of map_q: float32 [tokens, Hq, D]."""
    scheme = in_torch(scheme)
    if scheme.k_scale is not None and scheme.k_scale.shape[-1] == 1:
        scale = scale / per_query_head(scheme.k_scale, scheme)[:, 0]
    return q8.float() * scale[..., None]


def quantize_q(q: Tensor, scheme: AttentionScheme) -> tuple[Tensor, Tensor]:
    """Quantize q [tokens, Hq, D] after RoPE to int8, with a float32 scale [tokens, Hq] that includes K's static scale
    per head."""
    scheme = in_torch(scheme)
    q = map_q(q, scheme)
    if scheme.q_scale is not None and scheme.q_scale.shape[-1] == 1:
        q8 = _quantize_static(q, scheme.q_scale, None)
        scale = scheme.q_scale[:, 0].expand(q.shape[0], -1)
    else:
        q8, scale = quantize_rows(q)
    if scheme.k_scale is not None and scheme.k_scale.shape[-1] == 1:
        scale = scale * per_query_head(scheme.k_scale, scheme)[:, 0]
    return q8, scale


def quantize_k(k: Tensor, scheme: AttentionScheme) -> tuple[Tensor, Tensor | None]:
    """Quantize K [tokens, Hkv, D] after RoPE to int8, with float16 scales [tokens, Hkv] if they are per token."""
    scheme = in_torch(scheme)
    mapped = map_k(k, scheme)
    if scheme.k_scale is None:
        return quantize_rows_fp16(mapped)
    return _quantize_static(mapped, scheme.k_scale, scheme.k_offset), None


def quantize_v(v: Tensor, scheme: AttentionScheme) -> tuple[Tensor, Tensor | None]:
    """Quantize V [tokens, Hkv, D] to int8, with float16 scales [tokens, Hkv] if they are per token."""
    scheme = in_torch(scheme)
    if scheme.v_rotation_block:
        v = hadamard(v, scheme.v_rotation_block)
    if scheme.v_scale is None:
        return quantize_rows_fp16(v)
    return _quantize_static(v, scheme.v_scale, scheme.v_offset), None


def dequantize_k(k8: Tensor, scale: Tensor | None, scheme: AttentionScheme) -> Tensor:
    """K [tokens, Hkv, D] float32 in its original basis, as the attention sees it."""
    scheme = in_torch(scheme)
    return unmap_k(_dequantize(k8, scale, scheme.k_scale, scheme.k_offset), scheme)


def dequantize_v(v8: Tensor, scale: Tensor | None, scheme: AttentionScheme) -> Tensor:
    """V [tokens, Hkv, D] float32, as the attention sees it."""
    scheme = in_torch(scheme)
    v = _dequantize(v8, scale, scheme.v_scale, scheme.v_offset)
    return hadamard(v, scheme.v_rotation_block) if scheme.v_rotation_block else v


def dequantize_cache(
    k8: Tensor, v8: Tensor, k_scale: Tensor | None, v_scale: Tensor | None, scheme: AttentionScheme
) -> tuple[Tensor, Tensor]:
    """Dequantize K and V of one sequence from position 0 on: int8 [length, Hkv, D] and float16 scales [length, Hkv]."""
    size = scheme.map_block
    blocks = [slice(start, start + size) for start in range(0, len(k8), size)]
    k = [
        dequantize_k(k8[some], None if k_scale is None else k_scale[some], scheme.at(number))
        for number, some in enumerate(blocks)
    ]
    return torch.cat(k), dequantize_v(v8, v_scale, scheme)


def _rotate(x: Tensor, scheme: AttentionScheme) -> Tensor:
    if not scheme.rotation_block:
        return x
    if scheme.rotation_sign is not None:
        x = x * scheme.rotation_sign
    return hadamard(x, scheme.rotation_block)


def per_query_head(table: Tensor, scheme: AttentionScheme) -> Tensor:
    return table.repeat_interleave(scheme.num_heads // scheme.num_kv_heads, dim=0)


def _quantize_static(x: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    steps = x / scale
    if offset is not None:
        steps = steps + offset
    return steps.round().clamp(-128, 127).to(torch.int8)


def _dequantize(x8: Tensor, token_scale: Tensor | None, scale: Tensor | None, offset: Tensor | None) -> Tensor:
    x = x8.float()
    if token_scale is not None:
        return x * token_scale.float()[..., None]
    if scale is None:
        raise ValueError("a page without token scales needs the scheme's static scale")
    return (x if offset is None else x - offset) * scale
