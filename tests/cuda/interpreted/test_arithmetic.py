"""The functions that kernels share have the bits of the reference."""

import math

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from faquant.kernels import quantizers, reference
from faquant.kernels.cuda import arithmetic
from faquant.kernels.cuda.arithmetic import ROUNDED

pytestmark = pytest.mark.cuda


@triton.jit
def exp2_of(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, arithmetic.exp2(tl.load(x + at)))


@triton.jit
def integers_of(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, arithmetic.integer_of(tl.load(x + at)))


@triton.jit
def sums_of(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    columns = tl.arange(0, COLUMNS)
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + columns[None, :]
    tl.store(out + columns, arithmetic.sum_of_columns(tl.load(x + at), ROWS, COLUMNS))


@triton.jit
def transformed(x, out, ROWS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, FACTOR: tl.constexpr):
    at = tl.arange(0, ROWS)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out + at, arithmetic.hadamard(tl.load(x + at), ROWS, SIZE, BLOCK, FACTOR))


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def test_exp2() -> None:
    x = torch.cat((-torch.rand(2048) * 130, torch.tensor([0.0, -0.0, -126.5, -127.0, -1e30, -math.inf])))
    x = torch.nn.functional.pad(x, (0, 4096 - len(x)))
    out = torch.empty_like(x)
    exp2_of[(1,)](x, out, SIZE=4096, **ROUNDED)
    assert same_bits(out, reference.exp2(x.clone()))


def test_rounding_takes_halves_to_even() -> None:
    x = torch.arange(-1024, 1024) / 2
    out = torch.empty(2048, dtype=torch.int32)
    integers_of[(1,)](x, out, SIZE=2048, **ROUNDED)
    assert torch.equal(out, x.round().int())


@pytest.mark.parametrize("rows", [1, 2, 16, 128, 256])
def test_sums_by_halves(rows: int) -> None:
    x = torch.randn(rows, 8) * torch.logspace(-3, 3, rows)[:, None]
    out = torch.empty(8)
    sums_of[(1,)](x, out, ROWS=rows, COLUMNS=8, **ROUNDED)
    assert same_bits(out, reference._tree_sum(x.T.contiguous()))


@pytest.mark.parametrize(("size", "block"), [(64, 64), (128, 16), (512, 512), (1024, 256)])
def test_hadamard(size: int, block: int) -> None:
    x = torch.randn(4, size)
    out = torch.empty_like(x)
    transformed[(1,)](x, out, ROWS=4, SIZE=size, BLOCK=block, FACTOR=1 / math.sqrt(block), **ROUNDED)
    assert same_bits(out, quantizers.hadamard(x, block))
