"""What other engines do with an int8 cache, to compare with: K and V become bfloat16 in the kernel, both products are
bfloat16, softmax is the hardware's exp2, and the keys of a sequence are divided among programs (vLLM's Triton kernel,
FlashDecoding)."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

PAGE = 128
MERGED_TOGETHER = 8
TILINGS = {"32 keys": (32, 4, 5), "64 keys": (64, 4, 5), "128 keys": (128, 8, 3)}
"""Keys of a tile, warps and stages."""


@dataclass(frozen=True)
class Cache:
    """k, v: int8 [pages, Hkv, PAGE, D]; their scales float16 [pages, Hkv, PAGE]. Pages may be any distance apart."""

    k: Tensor
    v: Tensor
    k_scale: Tensor
    v_scale: Tensor


@triton.jit
def attend_split(
    q,
    k,
    v,
    k_scale,
    v_scale,
    block_tables,
    lengths,
    part_top,
    part_sum,
    part_out,
    width,
    splits,
    split_keys,
    unit,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    SCALE_STRIDE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The partial result of a group of query heads over split_keys keys. Grid (Hkv, splits, sequences)."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    head = tl.program_id(0)
    split = tl.program_id(1)
    row = tl.program_id(2)
    length = tl.load(lengths + row)
    begin = split * split_keys
    end = tl.minimum(begin + split_keys, length)
    if begin >= end:
        return
    queries = tl.arange(0, ROWS)
    channels = tl.arange(0, D)
    keys = tl.arange(0, TILE)
    real = queries < GROUP
    at = row * HEADS + head * GROUP + queries
    query = tl.load(q + at[:, None] * D + channels[None, :], mask=real[:, None], other=0.0)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, D), tl.float32)
    for first in tl.range(begin, end, TILE, num_stages=STAGES):
        page = tl.load(block_tables + row * width + first // PAGE_SIZE).to(tl.int64)
        place = head * PAGE_SIZE + first % PAGE_SIZE
        begin_of_page = page * PAGE_STRIDE
        scale_at = page * SCALE_STRIDE + place + keys
        seen = first + keys < end
        k_tile = tl.load(k + begin_of_page + place * D + (keys[None, :] * D + channels[:, None]))
        v_tile = tl.load(v + begin_of_page + place * D + (keys[:, None] * D + channels[None, :]))
        k_unit = tl.load(k_scale + scale_at).to(tl.float32) * unit
        v_unit = tl.load(v_scale + scale_at).to(tl.float32)
        scores = tl.dot(query, k_tile.to(query.dtype)) * k_unit[None, :]
        scores = tl.where(seen[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        p = tl.exp2(scores - new_top[:, None])
        old = tl.exp2(top - new_top)
        total = total * old + tl.sum(p, axis=1)
        weighted = tl.where(seen[None, :], p * v_unit[None, :], 0.0).to(query.dtype)
        out = tl.dot(weighted, v_tile.to(query.dtype), out * old[:, None])
        top = new_top
    to = (row.to(tl.int64) * splits + split) * HEADS + head * GROUP + queries
    tl.store(part_top + to, top, mask=real)
    tl.store(part_sum + to, total, mask=real)
    tl.store(part_out + to[:, None] * D + channels[None, :], out, mask=real[:, None])


@triton.jit
def merge_splits(
    part_top,
    part_sum,
    part_out,
    lengths,
    result,
    splits,
    split_keys,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Merge the splits of a row. Grid (Hq, sequences)."""
    head = tl.program_id(0)
    row = tl.program_id(1)
    count = tl.cdiv(tl.load(lengths + row), split_keys)
    channels = tl.arange(0, D)
    some = tl.arange(0, TOGETHER)
    top = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    out = tl.zeros((D,), tl.float32)
    for first in range(0, count, TOGETHER):
        inside = first + some < count
        at = (row.to(tl.int64) * splits + first + some) * HEADS + head
        tops = tl.load(part_top + at, mask=inside, other=float("-inf"))
        new_top = tl.maximum(top, tl.max(tops, axis=0))
        old = tl.exp2(top - new_top)
        weights = tl.exp2(tops - new_top)
        total = total * old + tl.sum(weights * tl.load(part_sum + at, mask=inside, other=0.0), axis=0)
        parts = tl.load(part_out + at[:, None] * D + channels[None, :], mask=inside[:, None], other=0.0)
        out = out * old + tl.sum(weights[:, None] * parts, axis=0)
        top = new_top
    tl.store(result + (row * HEADS + head) * D + channels, (out / total).to(result.dtype.element_ty))


class Converting:
    """Attention of one token of each sequence.

    Args:
        programs: how many keep the GPU busy.
        tiling: one of TILINGS' values.
        dtype: of q, of the operands of both products and of the result.
    """

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        dim: int,
        lengths: Tensor,
        longest: int,
        programs: int,
        tiling: tuple[int, int, int],
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        rows = len(lengths)
        self._heads, self._kv_heads, self._dim = heads, kv_heads, dim
        self._lengths, self._tiling = lengths, tiling
        wanted = max(1, min(-(-programs // (rows * kv_heads)), -(-longest // 256), 64))
        self._split_keys = triton.cdiv(triton.cdiv(longest, wanted), PAGE) * PAGE
        self._splits = triton.cdiv(longest, self._split_keys)
        shape = rows, self._splits, heads
        self._top, self._sum = (torch.empty(shape, device=lengths.device) for _ in range(2))
        self._parts = torch.empty(*shape, dim, device=lengths.device)
        self.out = torch.empty(rows, heads, dim, dtype=dtype, device=lengths.device)

    def __call__(self, q: Tensor, cache: Cache, block_tables: Tensor) -> Tensor:
        """q [sequences, Hq, D], int32 block_tables [sequences, pages]."""
        tile, warps, stages = self._tiling
        rows = len(self._lengths)
        attend_split[(self._kv_heads, self._splits, rows)](
            q,
            cache.k,
            cache.v,
            cache.k_scale,
            cache.v_scale,
            block_tables,
            self._lengths,
            self._top,
            self._sum,
            self._parts,
            block_tables.shape[1],
            self._splits,
            self._split_keys,
            1.4426950408889634 / self._dim**0.5,
            HEADS=self._heads,
            KV_HEADS=self._kv_heads,
            D=self._dim,
            ROWS=max(16, triton.next_power_of_2(self._heads // self._kv_heads)),
            TILE=tile,
            PAGE_SIZE=PAGE,
            PAGE_STRIDE=cache.k.stride(0),
            SCALE_STRIDE=cache.k_scale.stride(0),
            STAGES=stages,
            num_warps=warps,
        )
        merge_splits[(self._heads, rows)](
            self._top,
            self._sum,
            self._parts,
            self._lengths,
            self.out,
            self._splits,
            self._split_keys,
            HEADS=self._heads,
            D=self._dim,
            TOGETHER=MERGED_TOGETHER,
            num_warps=4,
        )
        return self.out
