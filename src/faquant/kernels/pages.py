"""Cache pages of one layer. Nothing else indexes into a page: append, attend, copy_page and read are all there is.

A slot is page · page_size + offset. A block table lists the pages of one sequence in order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .. import _C
from . import quantizers, reference, threads
from .addresses import address
from .packing import unpacked
from .saturation import Saturation
from .scheme import MAP_BLOCK, PADDING, AttentionScheme

TILE: int = _C.TILE


@dataclass(frozen=True)
class Spans:
    """Tokens of several sequences, one sequence's behind the other's.

    Attributes:
        tokens_starts: int64 [sequences, 2]: how many tokens, and the first one's number in its sequence.
        block_tables: int64 [sequences, pages], each sequence's pages in order; what lies behind its end is not read.
    """

    tokens_starts: Tensor
    block_tables: Tensor

    @classmethod
    def of(cls, parts: Sequence[tuple[int, int, Tensor]]) -> "Spans":
        """Of each sequence its tokens, start and block table."""
        numbers = torch.tensor([[tokens, start] for tokens, start, _ in parts], dtype=torch.int64)
        # -1 is no page, so that a table that is too short is noticed beside a longer one.
        tables = torch.full((len(parts), max(len(table) for *_, table in parts)), -1, dtype=torch.int64)
        for row, (*_, table) in zip(tables, parts, strict=True):
            row[: len(table)] = table
        return cls(numbers, tables)

    @cached_property
    def parts(self) -> list[tuple[slice, int, Tensor]]:
        """Of each sequence its rows, start and block table."""
        counts, starts = self.tokens_starts.T.tolist()
        ends = accumulate(counts)
        rows = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        return list(zip(rows, starts, self.block_tables, strict=True))


class Pages(Protocol):
    """What a layer's attention needs of its cache, whatever stands in it."""

    page_size: int
    num_pages: int
    saturation: Saturation
    """What was appended and asked beyond the calibrated ranges."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes in this layer."""

    def append(self, k: Tensor, v: Tensor, slots: Tensor, positions: Tensor) -> None:
        """Store k and v, float32 [tokens, Hkv, D] after RoPE, in the slots, int64 [tokens]; `positions`, int64
        [tokens], says which number each token has in its sequence."""

    def attend(self, q: Tensor, spans: Spans, window: int | None = None) -> Tensor:
        """Causal attention of q, float32 [tokens, Hq, D] after RoPE, of the spans' tokens over their sequences up to
        themselves. Returns float32 [tokens, Hq, D]."""

    def copy_page(self, source: int, target: int) -> None:
        """Make page `target` an exact copy of page `source`."""

    def read(self, block_table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """K and V of the first `length` tokens as float32 [length, Hkv, D], for evaluation."""


class PackedPages:
    """Pages that the C++ kernels serve; k and v [pages, Hkv, tiles, elements] are packed as csrc/isa/kernels.h says.

    Raises:
        ValueError: a page does not hold whole tiles.
    """

    def __init__(
        self, num_heads: int, num_kv_heads: int, head_dim: int, num_pages: int, page_size: int, isa: str | None
    ) -> None:
        if page_size <= 0 or page_size % TILE:
            raise ValueError(f"a page holds a multiple of {TILE} tokens, not {page_size}")
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.num_pages = num_pages
        self.page_size = page_size
        self.saturation = Saturation()
        self.cache: _C.LayerCache
        self._padded_dim = -(-head_dim // PADDING) * PADDING
        self._tiles = (num_pages, num_kv_heads, page_size // TILE, TILE * self._padded_dim)
        self._static: frozenset[str] = frozenset()
        self._isa = isa

    def append(self, k: Tensor, v: Tensor, slots: Tensor, positions: Tensor) -> None:
        tokens, heads, dim = k.shape[0], self.num_kv_heads, self.head_dim
        k, v = k.contiguous(), v.contiguous()
        beyond = self.cache.append(
            address("k", k, torch.float32, tokens, heads, dim),
            address("v", v, torch.float32, tokens, heads, dim),
            address("slots", slots, torch.int64, tokens),
            address("positions", positions, torch.int64, tokens),
            tokens,
            threads.count(),
            self._isa,
        )
        self.count_saturated(tokens, k=beyond[0], v=beyond[1])

    def attend(self, q: Tensor, spans: Spans, window: int | None = None) -> Tensor:
        q = q.contiguous()
        out = torch.empty_like(q)
        tokens, count, width = q.shape[0], *spans.block_tables.shape
        beyond = self.cache.attend(
            out.data_ptr(),
            address("q", q, torch.float32, tokens, self.num_heads, self.head_dim),
            tokens,
            address("tokens_starts", spans.tokens_starts, torch.int64, count, 2),
            address("block_tables", spans.block_tables, torch.int64, count, width),
            count,
            width,
            window,
            reference.SPLIT,
            threads.count(),
            self._isa,
        )
        self.count_saturated(tokens, q=beyond)
        return out

    def count_saturated(self, tokens: int, **beyond: int) -> None:
        """Count how many values of so many tokens' q, k or v were beyond their static scales, where they have such."""
        for name in self._static.intersection(beyond):
            heads = self.num_heads if name == "q" else self.num_kv_heads
            self.saturation.count(name, tokens * heads * self.head_dim, beyond[name])

    def _unpacked(self, k: Tensor, v: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """K and V [length, Hkv, D] of some packed pages, in order."""
        k, v = unpacked(k, self._padded_dim, TILE).transpose(3, 4), unpacked(v, TILE, self._padded_dim)
        return tuple(  # type: ignore[return-value]
            x.permute(0, 2, 3, 1, 4).flatten(0, 2)[:length, :, : self.head_dim].contiguous() for x in (k, v)
        )


class Int8Pages(PackedPages):
    """int8 K and V, with float16 scales [pages, Hkv, page_size] where they are dynamic.

    Raises:
        ValueError: a page does not hold whole tiles.
    """

    def __init__(self, scheme: AttentionScheme, num_pages: int, page_size: int, isa: str | None = None) -> None:
        heads = scheme.num_kv_heads
        super().__init__(scheme.num_heads, heads, scheme.head_dim, num_pages, page_size, isa)
        self.scheme = scheme
        self.k, self.v = torch.empty(self._tiles, dtype=torch.uint8), torch.empty(self._tiles, dtype=torch.int8)
        shape = (num_pages, heads, page_size)
        self.k_scale = torch.empty(shape, dtype=torch.float16) if scheme.k_scale is None else None
        self.v_scale = torch.empty(shape, dtype=torch.float16) if scheme.v_scale is None else None
        self._static = frozenset(name for name in "qkv" if getattr(scheme, f"{name}_scale") is not None)
        self.cache = _layer_cache(self)

    @property
    def bytes_per_token(self) -> int:
        return self.scheme.bytes_per_token

    def copy_page(self, source: int, target: int) -> None:
        for store in (self.k, self.v, self.k_scale, self.v_scale):
            if store is not None:
                store[target] = store[source]

    def read(self, block_table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        k8, v8, k_scale, v_scale = self.read_bytes(block_table, length)
        k = [
            quantizers.dequantize_k(
                k8[some], None if k_scale is None else k_scale[some], self.scheme.at(some.start // MAP_BLOCK)
            )
            for some in (slice(start, start + MAP_BLOCK) for start in range(0, length, MAP_BLOCK))
        ]
        return torch.cat(k), quantizers.dequantize_v(v8, v_scale, self.scheme)

    def read_bytes(self, block_table: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """int8 K and V [length, Hkv, D] and their scales float16 [length, Hkv], as reference.attend takes them."""
        some = block_table[: -(-length // self.page_size)]
        k8, v8 = self._unpacked((self.k[some] ^ 0x80).view(torch.int8), self.v[some], length)
        k_scale, v_scale = (
            None if scales is None else scales[some].transpose(1, 2).flatten(0, 1)[:length]
            for scales in (self.k_scale, self.v_scale)
        )
        return k8, v8, k_scale, v_scale


def _layer_cache(pages: Int8Pages) -> _C.LayerCache:
    scheme = pages.scheme

    def table(x: Tensor | None, dimensions: int = 2) -> Tensor | None:
        """[…, heads, D], with the maps in front where there are three dimensions."""
        if x is None:
            return None
        x = x.expand(*x.shape[:-1], scheme.head_dim)
        return (x[None] if x.dim() < dimensions else x).contiguous()

    def by_channel(x: Tensor | None) -> bool:
        return x is not None and x.shape[-1] > 1

    return _C.LayerCache(
        heads=scheme.num_heads,
        k=pages.k,
        v=pages.v,
        k_scales=None if pages.k_scale is None else pages.k_scale.view(torch.int16),
        v_scales=None if pages.v_scale is None else pages.v_scale.view(torch.int16),
        dim=scheme.head_dim,
        map_block=MAP_BLOCK,
        k_center=table(scheme.k_center, 3),
        k_equalizer=table(scheme.k_equalizer, 3),
        rotation_block=scheme.rotation_block,
        rotation_sign=scheme.rotation_sign,
        v_rotation_block=scheme.v_rotation_block,
        q_scale=table(scheme.q_scale),
        q_by_channel=by_channel(scheme.q_scale),
        k_scale=table(scheme.k_scale),
        k_by_channel=by_channel(scheme.k_scale),
        k_offset=table(scheme.k_offset),
        v_scale=table(scheme.v_scale),
        v_offset=table(scheme.v_offset),
        p_levels=scheme.p_levels,
        quantized_sum=scheme.quantized_sum,
    )


class BFloat16Pages(PackedPages):
    """K and V rounded to bfloat16, for comparison with int8 by the same code. Attention computes in float32.

    Numbers below 2^-62 are stored as 0.

    Raises:
        ValueError: a page does not hold whole tiles.
    """

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        num_pages: int,
        page_size: int,
        isa: str | None = None,
    ) -> None:
        super().__init__(num_heads, num_kv_heads, head_dim, num_pages, page_size, isa)
        self.k, self.v = (torch.empty(self._tiles, dtype=torch.bfloat16) for _ in range(2))
        k, v = self.k.view(torch.int16), self.v.view(torch.int16)
        self.cache = _C.LayerCache(heads=num_heads, k=k, v=v, dim=head_dim)

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_kv_heads * self._padded_dim * self.k.element_size()

    def copy_page(self, source: int, target: int) -> None:
        self.k[target] = self.k[source]
        self.v[target] = self.v[source]

    def read(self, block_table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        some = block_table[: -(-length // self.page_size)]
        k, v = self._unpacked(self.k[some], self.v[some], length)
        return k.float(), v.float()


class FloatPages:
    """float32 K and V [pages, page_size, Hkv, D], for layers whose attention is not quantized."""

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, num_pages: int, page_size: int) -> None:
        self.group = num_heads // num_kv_heads
        self.num_pages = num_pages
        self.page_size = page_size
        self.saturation = Saturation()
        self.k = torch.empty(num_pages, page_size, num_kv_heads, head_dim)
        self.v = torch.empty_like(self.k)

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.k.shape[2] * self.k.shape[3] * self.k.element_size()

    def append(self, k: Tensor, v: Tensor, slots: Tensor, positions: Tensor) -> None:
        self.k.flatten(0, 1)[slots] = k
        self.v.flatten(0, 1)[slots] = v

    def attend(self, q: Tensor, spans: Spans, window: int | None = None) -> Tensor:
        outs = []
        for rows, start, block_table in spans.parts:
            k, v = self.read(block_table, start + rows.stop - rows.start)
            outs.append(float_attend(q[rows], k, v, start, window))
        return torch.cat(outs)

    def copy_page(self, source: int, target: int) -> None:
        self.k[target] = self.k[source]
        self.v[target] = self.v[source]

    def read(self, block_table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        return _gather(self.k, block_table, length), _gather(self.v, block_table, length)


def float_attend(q: Tensor, k: Tensor, v: Tensor, start: int, window: int | None = None) -> Tensor:
    """Causal float attention: q [tokens, Hq, D] at `start` over k, v [start + tokens, Hkv, D], all of one dtype."""
    tokens, heads, dim = q.shape
    length, kv_heads, _ = k.shape
    group = heads // kv_heads
    if start == 0 and window is None and length == tokens:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)))
        return scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1)
    # What no query sees is left out, not multiplied by zero: it may be freed memory and hold NaN.
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


def _gather(store: Tensor, block_table: Tensor, length: int) -> Tensor:
    pages = -(-length // store.shape[1])
    return store[block_table[:pages]].flatten(0, 1)[:length]
