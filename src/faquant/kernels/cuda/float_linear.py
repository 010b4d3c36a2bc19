"""Linears with float weights, in the CPU's defined order: y = ∑ x·w by fused multiply-adds in float32, k ascending,
then + b. So the bits of a row depend only on the row, and matrix units cannot be used.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import ROUNDED

_COLUMNS = 128
"""Words of a row of a block: a program is one warp, and each of its threads loads four, which are 16 bytes."""

_MOST_ROWS = 16
"""Tokens of a program. A thread has a sum for each of them and of its four or eight outputs."""

_INPUTS_TOGETHER = 128
"""Inputs that a program of `gather_rows` moves."""


@dataclass(frozen=True)
class BlockedWeight:
    """A float weight in the order in which programs read it: one after another, blocks of 128 or 256 outputs.

    Attributes:
        values: float32 [blocks, k, 128], zeros beyond the last output. Of a weight with 16 bits, int32: the lower half
            of word c is output c of the block, the upper half output 128 + c. So four words are the same four columns
            of a thread as its four float32 sums, and widening takes one operation.
        dtype: float32, bfloat16 or float16.
        outputs: n.
    """

    values: Tensor
    dtype: torch.dtype
    outputs: int

    @classmethod
    def of(cls, weight: Tensor) -> "BlockedWeight":
        """weight [n, k], float32, bfloat16 or float16.

        Raises:
            ValueError: another dtype.
        """
        if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"a weight must be float32, bfloat16 or float16, not {weight.dtype}")
        n, k = weight.shape
        parts = 4 // weight.itemsize
        values = weight.new_zeros(triton.cdiv(n, parts * _COLUMNS), k, _COLUMNS, parts)
        # One block at a time, because another copy of a large weight may not fit into memory.
        for block, rows in zip(values, weight.split(parts * _COLUMNS), strict=True):
            for part, some in enumerate(rows.split(_COLUMNS)):
                block[:, : len(some), part] = some.T
        return cls(values.view(torch.int32 if parts == 2 else torch.float32).squeeze(-1), weight.dtype, n)

    @property
    def inputs(self) -> int:
        """k."""
        return self.values.shape[1]

    @property
    def nbytes(self) -> int:
        """Total size in bytes."""
        return self.values.nbytes


def float_linear(x: Tensor, weight: BlockedWeight, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """y = x · wᵀ (+ bias) for contiguous float32 x [tokens, k] and bias [n]: float32 [tokens, n].

    Raises:
        ValueError: x has another k.
    """
    tokens, k = x.shape
    if k != weight.inputs:
        raise ValueError(f"the weight has {weight.inputs} inputs, not {k}")
    if out is None:
        out = torch.empty(tokens, weight.outputs, device=x.device)
    if not tokens:
        return out
    rows = min(_MOST_ROWS, triton.next_power_of_2(tokens))
    groups = triton.cdiv(tokens, rows)
    if rows > 1:
        gathered = torch.empty(groups, k, rows, device=x.device)
        gather_rows[(groups, triton.cdiv(k, _INPUTS_TOGETHER))](
            x, gathered, tokens, INPUTS=k, ROWS=rows, TOGETHER=_INPUTS_TOGETHER, num_warps=4, **ROUNDED
        )
        x = gathered
    multiply_floats[(groups, len(weight.values))](
        x,
        weight.values,
        bias,
        out,
        tokens,
        OUTPUTS=weight.outputs,
        INPUTS=k,
        ROWS=rows,
        COLUMNS=_COLUMNS,
        PARTS=4 // weight.dtype.itemsize,
        FLOAT16=weight.dtype == torch.float16,
        UNROLLED=math.gcd(k, 4 if rows > 8 else 8),
        STAGES=4,
        num_warps=1,
        **ROUNDED,
    )
    return out


@triton.jit(do_not_specialize=["tokens"])
def gather_rows(x, out, tokens, INPUTS: tl.constexpr, ROWS: tl.constexpr, TOGETHER: tl.constexpr):
    """x [tokens, INPUTS] as [groups, INPUTS, ROWS], so that a program loads an input of its rows at once. Rows beyond
    the end repeat the last one. Grid (groups, parts of INPUTS).
    """
    group = tl.program_id(0)
    row = tl.minimum(group * ROWS + tl.arange(0, ROWS), tokens - 1).to(tl.int64)
    k = tl.program_id(1) * TOGETHER + tl.arange(0, TOGETHER)
    values = tl.load(x + row[:, None] * INPUTS + k[None, :], mask=k[None, :] < INPUTS, other=0.0)
    out += group.to(tl.int64) * (INPUTS * ROWS)
    at = k[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    tl.store(out + at, tl.trans(values), mask=k[:, None] < INPUTS)


@triton.jit(do_not_specialize=["tokens"])
def multiply_floats(
    x,
    weight,
    bias,
    out,
    tokens,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
    FLOAT16: tl.constexpr,
    UNROLLED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """ROWS tokens times a block of outputs. Grid (groups of tokens, blocks of outputs): programs that run together read
    the same weights.
    """
    group = tl.program_id(0)
    block = tl.program_id(1)
    columns = tl.arange(0, COLUMNS)
    rows = tl.arange(0, ROWS)
    weight += block.to(tl.int64) * (INPUTS * COLUMNS)
    x += group.to(tl.int64) * (INPUTS * ROWS)
    low = tl.zeros((ROWS, COLUMNS), tl.float32)
    high = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in tl.range(0, INPUTS, UNROLLED, num_stages=STAGES):
        for i in tl.static_range(UNROLLED):
            k = first + i
            word = tl.load(weight + k * COLUMNS + columns)
            v = tl.broadcast_to(tl.load(x + k * ROWS + rows)[:, None], (ROWS, COLUMNS))
            low = tl.fma(v, tl.broadcast_to(_low(word, PARTS, FLOAT16)[None, :], (ROWS, COLUMNS)), low)
            if PARTS == 2:
                high = tl.fma(v, tl.broadcast_to(_high(word, FLOAT16)[None, :], (ROWS, COLUMNS)), high)
    n = block * (PARTS * COLUMNS) + columns
    _store_sums(low, bias, out, group * ROWS + rows, n, tokens, OUTPUTS)
    if PARTS == 2:
        _store_sums(high, bias, out, group * ROWS + rows, n + COLUMNS, tokens, OUTPUTS)


@triton.jit
def _low(word, PARTS: tl.constexpr, FLOAT16: tl.constexpr):
    """The lower half of each word as float32, or the word itself if it is one."""
    if PARTS == 1:
        value = word
    elif FLOAT16:
        value = word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        value = (word << 16).to(tl.float32, bitcast=True)
    return value


@triton.jit
def _high(word, FLOAT16: tl.constexpr):
    """The upper half of each word as float32."""
    if FLOAT16:
        value = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        value = (word & -65536).to(tl.float32, bitcast=True)
    return value


@triton.jit
def _store_sums(sums, bias, out, token, n, tokens, OUTPUTS: tl.constexpr):
    if bias is not None:
        sums += tl.load(bias + n, mask=n < OUTPUTS, other=0.0)[None, :]
    at = token.to(tl.int64)[:, None] * OUTPUTS + n[None, :]
    tl.store(out + at, sums, mask=(token < tokens)[:, None] & (n < OUTPUTS)[None, :])
