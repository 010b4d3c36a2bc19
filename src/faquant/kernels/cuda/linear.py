"""int8 linears. Sums of integers are exact in any order, so the tiles and the parts of K depend on the shapes alone,
and a row has the same bits in every batch.

The weight is the M side of the products, yᵀ = W · xᵀ: a few tokens are then 8 or 16 columns, not a padded M of 64.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import ROUNDED
from .rounding import RoundedInputs

FEW_TOKENS = 64
"""Up to so many tokens, reading the weight takes the time, and all of them share one read."""

_PROGRAMS = 256
"""Programs that keep a GPU busy: about two for each of its multiprocessors."""

_LEAST_STEPS = 4
"""Steps along K that a program takes at least, so that its loads overlap."""


@dataclass(frozen=True)
class SplitSums:
    """Memory for programs that share a tile's sums, each over a part of K. One for each stream.

    Attributes:
        partial: int32 sums.
        arrived: int32, of each tile the number of programs that have stored their sums. Zero between launches.
    """

    partial: Tensor
    arrived: Tensor

    @classmethod
    def empty(cls, shapes: Iterable[Sequence[int]], tokens: int, device: torch.device) -> "SplitSums":
        """Memory for linears of these (outputs, inputs), with up to this many tokens, of 8 or 16 bits."""
        tilings = [
            tiling_of(some * (2 if wide else 1), n, k, wide)
            for n, k in shapes
            for some in range(1, tokens + 1)
            for wide in (False, True)
        ]
        return cls._for_sizes(
            max((t.partial_sums for t in tilings), default=0), max((t.tiles for t in tilings), default=0), device
        )

    def holds(self, tiling: "Tiling") -> bool:
        """Whether it is large enough for this tiling."""
        return self.partial.numel() >= tiling.partial_sums and self.arrived.numel() >= tiling.tiles

    @classmethod
    def _for_sizes(cls, partial_sums: int, tiles: int, device: torch.device) -> "SplitSums":
        return cls(
            torch.empty(partial_sums, dtype=torch.int32, device=device),
            torch.zeros(tiles, dtype=torch.int32, device=device),
        )


class Tiling(NamedTuple):
    """How a product is divided: tiles of outputs × tokens, steps of inputs, parts of K, and the launch's options."""

    outputs: int
    tokens: int
    inputs: int
    splits: int
    tiles: int
    warps: int
    stages: int

    @property
    def partial_sums(self) -> int:
        return self.splits * self.tiles * self.outputs * self.tokens if self.splits > 1 else 0


@lru_cache(maxsize=1 << 16)
def tiling_of(tokens: int, outputs: int, inputs: int, wide: bool = False) -> Tiling:
    """The tiling for x [tokens, inputs] and a weight [outputs, inputs]; if `wide`, a token is two rows of x, and each
    counts as one."""
    programs = _PROGRAMS
    if tokens <= FEW_TOKENS:
        steps = (256, 128, 64) if tokens <= 8 else (128, 64)
        # Each tile of outputs reads all tokens: from 33 on these are as many bytes as 64 rows of the weight.
        rows, warps, stages = (64, 4, 4) if tokens <= 32 or outputs < 64 * _PROGRAMS else (128, 8, 4)
        tile = rows, max(8, triton.next_power_of_2(tokens)), next((step for step in steps if inputs % step == 0), 128)
    else:
        # One program of 8 warps on a multiprocessor: split sums of large tiles are many bytes.
        programs //= 2
        tile, warps, stages = (128, 256, 64), 8, 4
        # The sums of 64 bits of the larger tile do not fit into registers.
        if wide or triton.cdiv(outputs, 128) * triton.cdiv(tokens, 256) < programs:
            tile, stages = (128, 128, 128 if inputs % 128 == 0 else 64), 3
    tiles = triton.cdiv(outputs, tile[0]) * triton.cdiv(tokens, tile[1])
    steps_of_k = triton.cdiv(inputs, tile[2])
    wanted = max(1, min(round(programs / tiles), steps_of_k // _LEAST_STEPS))
    # Equal parts: the last program of a tile is not shorter than necessary.
    splits = triton.cdiv(steps_of_k, triton.cdiv(steps_of_k, wanted))
    return Tiling(*tile, splits, tiles, warps, stages)


def int8_linear(
    inputs: RoundedInputs,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    quant_bias: Tensor | None = None,
    totals: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    sums: SplitSums | None = None,
) -> Tensor:
    """y = float32(x8 · w8ᵀ) · scale · x_scale (+ bias), or (x8 · w8ᵀ + quant_bias) · scale if the inputs' scale is
    static; + residual. Zero points of inputs, times `totals`, are subtracted from the sums. Inputs of 16 bits are
    multiplied as two rows of bytes; the sums 256 · high + low are rounded to float32 once.

    Args:
        inputs: [tokens, k].
        weight: contiguous int8 [n, k]; k is a multiple of 16.
        scale: float32 [n]; of a static linear, deq_scale.
        bias: float32 [n], only if the inputs have scales; quant_bias: int32 [n], only if they have none.
        totals: int32 [n], Σ of each row of the weight; only if the inputs have zero points.
        residual: contiguous float32 [tokens, n], may be `out`.
        out: contiguous float32 [tokens, n].
        sums: memory for split sums, for this many tokens; made if None.

    Returns:
        float32 [tokens, n].

    Raises:
        ValueError: shapes do not fit, a bias is of the other kind, or `sums` is too small.
    """
    rows, k = inputs.values.shape
    tokens = rows // 2 if inputs.is_wide else rows
    n = weight.shape[0]
    if weight.shape[1] != k or k % 16:
        raise ValueError(f"a weight {list(weight.shape)} needs its width in inputs, a multiple of 16, not {k}")
    if (quant_bias is None) != (inputs.scale is not None) or (bias is not None and inputs.scale is None):
        raise ValueError("quant_bias belongs to inputs with a static scale, bias to inputs with a scale per token")
    if (totals is None) != (inputs.zero is None):
        raise ValueError("totals belong to inputs with zero points")
    if out is None:
        out = torch.empty(tokens, n, device=weight.device)
    if not tokens:
        return out
    tiling = tiling_of(rows, n, k, inputs.is_wide)
    if tiling.splits > 1 and sums is None:
        sums = SplitSums._for_sizes(tiling.partial_sums, tiling.tiles, weight.device)
    elif tiling.splits > 1 and sums is not None and not sums.holds(tiling):
        raise ValueError(f"the memory for split sums was not made for {tokens} tokens of a weight {[n, k]}")
    multiply[(tiling.tiles, tiling.splits)](
        inputs.values,
        inputs.scale,
        inputs.zero,
        weight,
        scale,
        bias,
        quant_bias,
        totals,
        residual,
        out,
        None if sums is None else sums.partial,
        None if sums is None else sums.arrived,
        rows,
        OUTPUTS=n,
        INPUTS=k,
        TILE_OUTPUTS=tiling.outputs,
        TILE_TOKENS=tiling.tokens,
        STEP=tiling.inputs,
        SPLITS=tiling.splits,
        WIDE=inputs.is_wide,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **ROUNDED,
    )
    return out


@triton.jit(do_not_specialize=["tokens"])
def multiply(
    x,
    x_scale,
    x_zero,
    weight,
    scale,
    bias,
    quant_bias,
    totals,
    residual,
    out,
    partial,
    arrived,
    tokens,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    TILE_OUTPUTS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    STEP: tl.constexpr,
    SPLITS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """A tile of y = x · weightᵀ, or its sums over a part of the inputs. Grid (tiles, SPLITS).

    WIDE: two rows of x, high and low bytes, are one token; here, each of them counts as one.
    The last of the SPLITS programs of a tile adds their sums and stores y.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    first_output, first_token = _corner(tile, tokens, OUTPUTS, TILE_OUTPUTS, TILE_TOKENS)
    # Rows beyond the end read the last row again: their sums are not stored, and loads need no mask.
    outputs = tl.arange(0, TILE_OUTPUTS)
    rows = outputs if OUTPUTS % TILE_OUTPUTS == 0 else tl.minimum(outputs, OUTPUTS - 1 - first_output)
    columns = tl.minimum(tl.arange(0, TILE_TOKENS), tokens - 1 - first_token)
    ks = tl.arange(0, STEP)
    weight_at = weight + first_output.to(tl.int64) * INPUTS + rows[:, None] * INPUTS + ks[None, :]
    x_at = x + first_token.to(tl.int64) * INPUTS + columns[None, :] * INPUTS + ks[:, None]
    STEPS: tl.constexpr = (INPUTS + STEP - 1) // STEP
    PART: tl.constexpr = (STEPS + SPLITS - 1) // SPLITS
    products = tl.zeros((TILE_OUTPUTS, TILE_TOKENS), tl.int32)
    for step in range(split * PART, min(split * PART + PART, STEPS)):
        k = step * STEP
        if INPUTS % STEP == 0:
            w8 = tl.load(weight_at + k)
            x8 = tl.load(x_at + k)
        else:
            w8 = tl.load(weight_at + k, mask=ks[None, :] < INPUTS - k, other=0)
            x8 = tl.load(x_at + k, mask=ks[:, None] < INPUTS - k, other=0)
        products = tl.dot(w8, x8, products, out_dtype=tl.int32)
    if SPLITS > 1:
        at = outputs[:, None] * TILE_TOKENS + tl.arange(0, TILE_TOKENS)[None, :]
        SIZE: tl.constexpr = TILE_OUTPUTS * TILE_TOKENS
        sums = partial + tile.to(tl.int64) * (SPLITS * SIZE)
        tl.store(sums + split * SIZE + at, products)
        # All threads have stored before one of them counts.
        tl.debug_barrier()
        if tl.atomic_add(arrived + tile, 1, sem="acq_rel") != SPLITS - 1:
            return
        tl.store(arrived + tile, 0)
        products = tl.zeros((TILE_OUTPUTS, TILE_TOKENS), tl.int32)
        for i in range(SPLITS):
            products += tl.load(sums + i * SIZE + at, cache_modifier=".cg")
    HALVES: tl.constexpr = 2 if TILE_OUTPUTS * TILE_TOKENS > 128 * 128 else 1
    parts = (products,)
    if HALVES == 2:
        # A half at a time, because all outputs and residuals do not fit into registers.
        parts = tl.split(tl.reshape(products, (2, TILE_OUTPUTS // 2, TILE_TOKENS)).permute(1, 2, 0))
    for half in tl.static_range(HALVES):
        _finish(
            parts[half],
            x_scale,
            x_zero,
            scale,
            bias,
            quant_bias,
            totals,
            residual,
            out,
            tokens,
            first_output + half * (TILE_OUTPUTS // HALVES),
            first_token,
            OUTPUTS,
            TILE_OUTPUTS // HALVES,
            TILE_TOKENS,
            WIDE,
        )


@triton.jit
def _corner(tile, tokens, OUTPUTS: tl.constexpr, TILE_OUTPUTS: tl.constexpr, TILE_TOKENS: tl.constexpr):
    """The first output and token of a tile. Up to eight tiles of tokens are taken with a tile of outputs before the
    next one, so that programs that run together read few rows of both.
    """
    BANDS: tl.constexpr = (OUTPUTS + TILE_OUTPUTS - 1) // TILE_OUTPUTS
    group = tile // (8 * BANDS)
    inside = tile % (8 * BANDS)
    together = tl.minimum(tl.cdiv(tokens, TILE_TOKENS) - group * 8, 8)
    return inside // together * TILE_OUTPUTS, (group * 8 + inside % together) * TILE_TOKENS


@triton.jit
def _finish(
    products,
    x_scale,
    x_zero,
    scale,
    bias,
    quant_bias,
    totals,
    residual,
    out,
    tokens,
    first_output,
    first_token,
    OUTPUTS: tl.constexpr,
    TILE_OUTPUTS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """From the sums of a tile to its outputs."""
    PARTS: tl.constexpr = 2 if WIDE else 1
    n = first_output + tl.arange(0, TILE_OUTPUTS)
    token = first_token // PARTS + tl.arange(0, TILE_TOKENS // PARTS)
    tokens = tokens // PARTS
    is_output = n < OUTPUTS
    if WIDE:
        high, low = tl.split(tl.reshape(products, (TILE_OUTPUTS, TILE_TOKENS // 2, 2)))
        products = high.to(tl.int64) * 256 + low
    if x_zero is not None:
        zero = tl.load(x_zero + token, mask=token < tokens, other=0)
        products -= tl.load(totals + n, mask=is_output, other=0)[:, None] * zero[None, :]
    if quant_bias is not None:
        products += tl.load(quant_bias + n, mask=is_output, other=0)[:, None]
    y = products.to(tl.float32) * tl.load(scale + n, mask=is_output, other=0.0)[:, None]
    if x_scale is not None:
        y *= tl.load(x_scale + token, mask=token < tokens, other=0.0)[None, :]
    if bias is not None:
        y += tl.load(bias + n, mask=is_output, other=0.0)[:, None]
    at = token.to(tl.int64)[None, :] * OUTPUTS + n[:, None]
    inside = is_output[:, None] & (token < tokens)[None, :]
    if residual is not None:
        y = tl.load(residual + at, mask=inside, other=0.0) + y
    tl.store(out + at, y, mask=inside)
