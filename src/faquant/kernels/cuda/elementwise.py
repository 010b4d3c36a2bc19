"""RMSNorm, RoPE and silu(gate) · up, with the bits of csrc/generic/elementwise_rows-inl.h."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import ROUNDED, ROUNDER, ROUNDER_BITS, sum_of_columns

_GATED_BLOCK = 1024


@triton.jit
def _load_32(x):
    values = tl.tuple([])
    for i in tl.static_range(32):
        values += (tl.load(x + i * 16),)
    return values


@triton.jit
def sum_of_squares(rows, ROWS: tl.constexpr, SIZE: tl.constexpr):
    """The sum of the squares of each row of SIZE floats at these pointers: float32 [ROWS].

    In 16 lanes, one square after another, and those by halves. The loads do not wait for the sums, so a row which
    others load at the same time comes from the L1 cache.
    """
    lanes = tl.arange(0, 16)
    x = rows[:, None] + lanes[None, :]
    sums = tl.zeros((ROWS, 16), tl.float32)
    WHOLE: tl.constexpr = SIZE // 512 * 512
    if WHOLE > 0:
        # Loaded one round ahead of the sums, because these depend on each other and leave no time to wait.
        values = _load_32(x)
        for first in range(512, WHOLE, 512):
            later = _load_32(x + first)
            for i in tl.static_range(32):
                sums += values[i] * values[i]
            values = later
        for i in tl.static_range(32):
            sums += values[i] * values[i]
    for first in tl.static_range(WHOLE, SIZE, 16):
        value = tl.load(x + first, mask=lanes[None, :] < SIZE - first, other=0.0)
        sums += value * value
    return sum_of_columns(tl.trans(sums), 16, ROWS)


@triton.jit
def rms_factor(rows, eps, ROWS: tl.constexpr, SIZE: tl.constexpr):
    """1 / rms of each row of SIZE floats at these pointers: float32 [ROWS]."""
    mean = tl.div_rn(sum_of_squares(rows, ROWS, SIZE), tl.full((ROWS,), SIZE, tl.float32))
    return tl.div_rn(tl.full((ROWS,), 1.0, tl.float32), tl.sqrt_rn(mean + eps))


@triton.jit
def _rms_norm(x, weight, bias, out, eps, x_stride, out_stride, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """A row of `out` for each program."""
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    columns = tl.arange(0, WIDTH)[None, :]
    inside = columns < SIZE
    begin = x + row * x_stride
    values = tl.load(begin[:, None] + columns, mask=inside, other=0.0)
    result = tl.load(weight + columns, mask=inside, other=0.0) * (values * rms_factor(begin, eps, 1, SIZE)[:, None])
    if bias is not None:
        result += tl.load(bias + columns, mask=inside, other=0.0)
    # `out` may be x, whose squares other warps may still be loading.
    tl.debug_barrier()
    tl.store(out + (row * out_stride)[:, None] + columns, result, mask=inside)


@triton.jit
def over_one_plus_exp(x, y):
    """x / (1 + e^y). e^y = 2^n · e^r with n = rint(y / ln 2), and r in two parts of ln 2."""
    bounded = tl.maximum(tl.minimum(y, 88.0), -87.0)
    shifted = bounded * 1.44269504 + ROUNDER
    n = shifted - ROUNDER
    r = (bounded - n * 0.693359375) - n * -2.12194440e-4
    p = r * (1.0 / 5040) + (1.0 / 720)
    p = p * r + (1.0 / 120)
    p = p * r + (1.0 / 24)
    p = p * r + (1.0 / 6)
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    e = p * ((shifted.to(tl.int32, bitcast=True) - ROUNDER_BITS + 127) << 23).to(tl.float32, bitcast=True)
    return tl.div_rn(x, 1.0 + tl.where(y > 88.0, float("inf"), e))


@triton.jit
def silu(x):
    """x / (1 + e^-x), to within 3e-7."""
    return over_one_plus_exp(x, -x)


@triton.jit
def gelu(x):
    """x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), to within 1e-6."""
    return over_one_plus_exp(x, -x * (1.59576912 + 0.0713548163 * (x * x)))


@triton.jit
def _gated(gate, up, out, gate_stride, up_stride, size, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    x = tl.load(gate + row * gate_stride + columns, mask=inside, other=0.0)
    y = tl.load(up + row * up_stride + columns, mask=inside, other=0.0)
    if GELU:
        z = gelu(x)
    else:
        z = silu(x)
    tl.store(out + row * size + columns, z * y, mask=inside)


@triton.jit
def _rope(x, cos, sin, token_stride, heads, DIM: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr):
    """HEADS heads of a token for each program."""
    HALF: tl.constexpr = DIM // 2
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    low = tl.arange(0, WIDTH)[None, :]
    of_table = low < HALF
    inside = (head < heads) & of_table
    x += token * token_stride + head * DIM + low
    cos += token * DIM + low
    sin += token * DIM + low
    a = tl.load(x, mask=inside)
    b = tl.load(x + HALF, mask=inside)
    new_low = a * tl.load(cos, mask=of_table) - b * tl.load(sin, mask=of_table)
    new_high = b * tl.load(cos + HALF, mask=of_table) + a * tl.load(sin + HALF, mask=of_table)
    tl.store(x, new_low, mask=inside)
    tl.store(x + HALF, new_high, mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x / rms(x) · weight (+ bias) over the last dimension: float32 [..., size]; weight and bias [size].

    Rows of x and `out` may be any distance apart; `out` may be x.
    """
    size = x.shape[-1]
    if out is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows, results = x.reshape(-1, size), out.view(-1, size)
    width = triton.next_power_of_2(size)
    warps = 1 if width <= 256 else 4 if width <= 8192 else 8
    _rms_norm[(len(rows),)](
        rows,
        weight,
        bias,
        results,
        eps,
        rows.stride(0),
        results.stride(0),
        SIZE=size,
        WIDTH=width,
        num_warps=warps,
        **ROUNDED,
    )
    return out


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2) of float32 x [tokens, heads, D] in place by tables [tokens, 1, D] or [tokens, D].

    x may be a part of a larger buffer, with any distance between tokens.
    """
    tokens, heads, dim = x.shape
    width = triton.next_power_of_2(dim // 2)
    at_once = max(1, min(triton.next_power_of_2(heads), 1024 // width))
    _rope[(tokens, triton.cdiv(heads, at_once))](
        x, cos, sin, x.stride(0), heads, DIM=dim, HEADS=at_once, WIDTH=width, num_warps=4, **ROUNDED
    )
    return x


def silu_times(gate: Tensor, up: Tensor) -> Tensor:
    """gate / (1 + e^-gate) · up: float32 [rows, size] each. Rows of gate and up may be any distance apart."""
    return _gated_by(gate, up, False)


def gelu_times(gate: Tensor, up: Tensor) -> Tensor:
    """As silu_times, with gelu in its approximation by tanh."""
    return _gated_by(gate, up, True)


def _gated_by(gate: Tensor, up: Tensor, gelu: bool) -> Tensor:
    rows, size = gate.shape
    out = torch.empty(rows, size, device=gate.device)
    grid = rows, triton.cdiv(size, _GATED_BLOCK)
    strides = gate.stride(0), up.stride(0)
    _gated[grid](gate, up, out, *strides, size, GELU=gelu, BLOCK=_GATED_BLOCK, num_warps=4, **ROUNDED)
    return out
