"""Cache pages of one layer on the CPU. Only append, attend, copy_page and read access the content of a page.

A slot is page · page_size + offset. A block table lists the pages of one sequence in order. A page is contiguous: K, V
and, if they are dynamic, K's and V's scales. Pages may be any distance apart, in memory of the caller.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from math import prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from . import _C
from .arrays import Array, Floats, Integers, Stored, contiguous, empty, widen
from .memory import CACHE_LINE
from .memory import empty as empty_memory
from .packing import unpacked
from .saturation import Saturation
from .scheme import PADDING, SPLIT, TILE, AttentionScheme, by_channel, written_out
from .threads import ALL_THREADS


@dataclass(frozen=True)
class Spans:
    """Tokens of several sequences, one sequence after another.

    Attributes:
        tokens_starts: int64 [sequences, 2]: number of tokens, and position of the first one in its sequence.
        block_tables: int64 [sequences, pages], the pages of each sequence in order; entries beyond its end are not
            read. For pages on a GPU it may be an int32 tensor there.
    """

    tokens_starts: Integers
    block_tables: Array

    @classmethod
    def of(cls, parts: Sequence[tuple[int, int, Array]]) -> "Spans":
        """From (tokens, start, block table) of each sequence."""
        numbers = np.array([[tokens, start] for tokens, start, _ in parts], np.int64)
        # Padded with -1, which is not a page, so that a table that is too short is detected.
        tables = np.full((len(parts), max(len(table) for *_, table in parts)), -1, np.int64)
        for row, (*_, table) in zip(tables, parts, strict=True):
            row[: len(table)] = table
        return cls(numbers, tables)

    @cached_property
    def parts(self) -> list[tuple[slice, int, Array]]:
        """Yield (rows, start, block table) of each sequence."""
        counts, starts = self.tokens_starts.T.tolist()
        ends = accumulate(counts)
        rows = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        return list(zip(rows, starts, self.block_tables, strict=True))


Memory: TypeAlias = Stored
"""Bytes of pages: uint8 [pages, bytes_per_token · page_size], in which a page is contiguous."""


def _divided(memory: Memory | None, num_pages: int, *parts: tuple[tuple[int, ...], npt.DTypeLike]) -> list[Stored]:
    """The parts of each page, given as (shape, dtype): views [pages, *shape] of this memory, or of new memory.

    Raises:
        ValueError: the memory has other sizes, or does not lie as kernels load it.
    """
    sizes = [prod(shape) * np.dtype(dtype).itemsize for shape, dtype in parts]
    size = sum(sizes)
    if memory is None:
        memory = empty_memory((num_pages, size), np.uint8)
    elif memory.shape != (num_pages, size) or memory.dtype != np.uint8:
        raise ValueError(
            f"the memory of the pages must be uint8 {[num_pages, size]}, not {memory.dtype} {list(memory.shape)}"
        )
    else:
        distance, inside = memory.strides
        if inside != 1 or distance < size or distance % CACHE_LINE or memory.ctypes.data % CACHE_LINE:
            raise ValueError(f"pages must be contiguous, not overlap, and begin at multiples of {CACHE_LINE} bytes")
    ends = list(accumulate(sizes))
    return [
        memory[:, end - size : end].view(dtype).reshape(num_pages, *shape)
        for (shape, dtype), size, end in zip(parts, sizes, ends, strict=True)
    ]


class PackedPages:
    """Pages for the C++ kernels; k and v [pages, Hkv, tiles, elements] are packed as described in csrc/isa/kernels.h.

    Raises:
        ValueError: a page does not hold whole tiles.
    """

    is_packed = True

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
        self._tiles = (num_kv_heads, page_size // TILE, TILE * self._padded_dim)
        self._static: frozenset[str] = frozenset()
        self._isa = isa

    def append(self, k: Array, v: Array, slots: Array, positions: Array) -> None:
        beyond = self.cache.append(contiguous(k), contiguous(v), slots, positions, ALL_THREADS, self._isa)
        self.count_saturated(len(k), k=beyond[0], v=beyond[1])

    def attend(self, q: Array, spans: Spans, window: int | None = None) -> Array:
        q = contiguous(q)
        out = empty(q, *q.shape)
        beyond = self.cache.attend(
            out, q, spans.tokens_starts, spans.block_tables, window, SPLIT, ALL_THREADS, self._isa
        )
        self.count_saturated(len(q), q=beyond)
        return out

    def count_saturated(self, tokens: int, **beyond: int) -> None:
        """Count the values of q, k or v of `tokens` tokens that were beyond their static scales, if they have any."""
        for name in self._static.intersection(beyond):
            heads = self.num_heads if name == "q" else self.num_kv_heads
            self.saturation.count(name, tokens * heads * self.head_dim, beyond[name])

    def _unpacked(self, k: Stored, v: Stored, length: int) -> tuple[Stored, Stored]:
        """Unpack pages into K and V [length, Hkv, D]."""
        k, v = unpacked(k, self._padded_dim, TILE).swapaxes(3, 4), unpacked(v, TILE, self._padded_dim)
        by_token = [x.transpose(0, 2, 3, 1, 4).reshape(-1, *x.shape[1:2], x.shape[4]) for x in (k, v)]
        k, v = (np.ascontiguousarray(x[:length, :, : self.head_dim]) for x in by_token)
        return k, v


class Int8Pages(PackedPages):
    """int8 K and V, with float16 scales [pages, Hkv, page_size] if they are dynamic.

    Raises:
        ValueError: a page does not hold whole tiles.
    """

    def __init__(
        self,
        scheme: AttentionScheme,
        num_pages: int,
        page_size: int,
        isa: str | None = None,
        memory: Memory | None = None,
    ) -> None:
        heads = scheme.num_kv_heads
        super().__init__(scheme.num_heads, heads, scheme.head_dim, num_pages, page_size, isa)
        self.scheme = scheme
        scales = (heads, page_size), np.float16
        dynamic = [name for name in "kv" if getattr(scheme, f"{name}_scale") is None]
        tiles = [(self._tiles, np.uint8), (self._tiles, np.int8)]
        self.k, self.v, *others = _divided(memory, num_pages, *tiles, *[scales] * len(dynamic))
        stored = dict(zip(dynamic, others, strict=True))
        self.k_scale, self.v_scale = stored.get("k"), stored.get("v")
        self._static = frozenset(name for name in "qkv" if getattr(scheme, f"{name}_scale") is not None)
        self.cache = _layer_cache(self)

    @property
    def bytes_per_token(self) -> int:
        return self.scheme.bytes_per_token

    def copy_page(self, source: int, target: int) -> None:
        for store in (self.k, self.v, self.k_scale, self.v_scale):
            if store is not None:
                store[target] = store[source]

    def read(self, block_table: Array, length: int) -> tuple[Floats, Floats]:
        from . import quantizers  # needs torch

        tensor_of = quantizers.tensor_of
        k8, v8, *scales = self.read_bytes(block_table, length)
        k_scale, v_scale = (None if scale is None else tensor_of(scale) for scale in scales)
        k, v = quantizers.dequantize_cache(tensor_of(k8), tensor_of(v8), k_scale, v_scale, self.scheme)
        return k.numpy(), v.numpy()

    def read_bytes(self, block_table: Array, length: int) -> tuple[Stored, Stored, Stored | None, Stored | None]:
        """int8 K and V [length, Hkv, D] and their scales float16 [length, Hkv], as reference.attend takes them."""
        some = np.asarray(block_table)[: -(-length // self.page_size)]
        k8, v8 = self._unpacked((self.k[some] ^ 0x80).view(np.int8), self.v[some], length)
        k_scale, v_scale = (
            None if scales is None else scales[some].swapaxes(1, 2).reshape(-1, self.num_kv_heads)[:length]
            for scales in (self.k_scale, self.v_scale)
        )
        return k8, v8, k_scale, v_scale


def _layer_cache(pages: Int8Pages) -> _C.LayerCache:
    scheme = pages.scheme
    table = partial(written_out, dim=scheme.head_dim)
    sign = scheme.rotation_sign
    return _C.LayerCache(
        heads=scheme.num_heads,
        k=pages.k,
        v=pages.v,
        k_scales=pages.k_scale,
        v_scales=pages.v_scale,
        dim=scheme.head_dim,
        map_block=scheme.map_block,
        k_center=table(scheme.k_center, dimensions=3),
        k_equalizer=table(scheme.k_equalizer, dimensions=3),
        rotation_block=scheme.rotation_block,
        rotation_sign=None if sign is None else np.ascontiguousarray(sign, np.float32),
        v_rotation_block=scheme.v_rotation_block,
        q_scale=table(scheme.q_scale),
        q_by_channel=by_channel(scheme.q_scale),
        k_scale=table(scheme.k_scale),
        k_by_channel=by_channel(scheme.k_scale),
        k_offset=table(scheme.k_offset),
        v_scale=table(scheme.v_scale),
        v_offset=table(scheme.v_offset),
        p_levels=scheme.p_levels,
        p_float16=scheme.p_float16,
        quantized_sum=scheme.quantized_sum,
    )


class BFloat16Pages(PackedPages):
    """K and V rounded to bfloat16, to compare int8 with in the same code. Attention computes in float32.

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
        memory: Memory | None = None,
    ) -> None:
        super().__init__(num_heads, num_kv_heads, head_dim, num_pages, page_size, isa)
        self.k, self.v = _divided(memory, num_pages, *[(self._tiles, np.uint16)] * 2)
        self.cache = _C.LayerCache(heads=num_heads, k=self.k, v=self.v, dim=head_dim)

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_kv_heads * self._padded_dim * self.k.itemsize

    def copy_page(self, source: int, target: int) -> None:
        self.k[target] = self.k[source]
        self.v[target] = self.v[source]

    def read(self, block_table: Array, length: int) -> tuple[Floats, Floats]:
        some = np.asarray(block_table)[: -(-length // self.page_size)]
        k, v = self._unpacked(self.k[some], self.v[some], length)
        return widen(k), widen(v)


class FloatPages:
    """float32 K and V [pages, page_size, Hkv, D], for layers without quantized attention."""

    is_packed = False

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        num_pages: int,
        page_size: int,
        isa: str | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.saturation = Saturation()
        self.k, self.v = _divided(memory, num_pages, *[((page_size, num_kv_heads, head_dim), np.float32)] * 2)
        self._cache = _C.FloatCache(heads=num_heads, k=self.k, v=self.v)
        self._isa = isa

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.k.shape[2] * self.k.shape[3] * self.k.itemsize

    def append(self, k: Array, v: Array, slots: Array, positions: Array) -> None:
        self._cache.append(contiguous(k), contiguous(v), slots)

    def attend(self, q: Array, spans: Spans, window: int | None = None) -> Array:
        q = contiguous(q)
        out = empty(q, *q.shape)
        self._cache.attend(out, q, spans.tokens_starts, spans.block_tables, window, ALL_THREADS, self._isa)
        return out

    def copy_page(self, source: int, target: int) -> None:
        self.k[target] = self.k[source]
        self.v[target] = self.v[source]

    def read(self, block_table: Array, length: int) -> tuple[Floats, Floats]:
        pages = np.asarray(block_table)[: -(-length // self.page_size)]
        k, v = (store[pages].reshape(-1, *store.shape[2:])[:length] for store in (self.k, self.v))
        return k, v
