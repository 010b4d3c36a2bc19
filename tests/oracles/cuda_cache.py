"""Batches of sequences in the layout of the GPU's int8 cache, and their attention by the reference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from faquant.kernels import reference
from faquant.kernels.cuda.cache import DeviceSpans, Int8Cache, MappedQueries, SchemeTables
from faquant.kernels.pages import Spans
from faquant.kernels.quantizers import quantize_k, quantize_v
from faquant.kernels.scheme import TILE, AttentionScheme

CPU = torch.device("cpu")


def poisoned(scheme: AttentionScheme, num_pages: int, page_size: int) -> Int8Cache:
    """A cache full of 0x7f bytes and scales that are NaN, with all bits set: a NaN of 0x7e00 would become a P of 0."""
    cache = Int8Cache.empty(scheme, num_pages, page_size, CPU)
    cache.k.fill_(0x7F)
    cache.v.fill_(0x7F)
    for scale in (cache.k_scale, cache.v_scale):
        if scale is not None:
            scale.view(torch.int16).fill_(0x7FFF)
    return cache


def write(cache: Int8Cache, pages: Sequence[int], first: int, k8: Tensor, v8: Tensor, *scales: Tensor | None) -> None:
    """Write the keys and values of one sequence from the token `first` on, [length, Hkv, D], into its pages."""
    for number, place in enumerate(product(pages, range(cache.tiles_in_page))):
        start = max(first, number * TILE)
        some = slice(start, min(number * TILE + TILE, len(k8)))
        if some.start >= some.stop:
            continue
        here = slice(some.start - number * TILE, some.stop - number * TILE)
        cache.k[place][:, here] = k8[some].transpose(0, 1)
        cache.v[place][..., here] = v8[some].permute(1, 2, 0)
        for store, scale in zip((cache.k_scale, cache.v_scale), scales, strict=True):
            if store is not None and scale is not None:
                store[place][:, here] = scale[some].T


@dataclass
class Batch:
    """Sequences of random tokens, the last ones of which are queries.

    Attributes:
        expected: of the reference, for each sequence on its own, float32 [tokens, Hq, D].
    """

    scheme: AttentionScheme
    tables: SchemeTables
    cache: Int8Cache
    queries: MappedQueries
    spans: DeviceSpans
    window: int | None
    expected: Tensor

    @classmethod
    def random(
        cls,
        scheme: AttentionScheme,
        parts: Sequence[tuple[int, int]],
        window: int | None = None,
        page_size: int = TILE,
        seed: int = 0,
    ) -> "Batch":
        """`parts` are (tokens, start) of each sequence. Whatever no query sees is poison: keys before the window and
        after the end, other pages, and queries under maps that their token does not reach."""
        torch.manual_seed(seed)
        lengths = [tokens + start for tokens, start in parts]
        pages = [-(-length // page_size) for length in lengths]
        order = torch.randperm(sum(pages) + 2)
        cache = poisoned(scheme, len(order), page_size)
        heads, kv_heads, dim = scheme.num_heads, scheme.num_kv_heads, scheme.head_dim
        maps = min(scheme.num_maps, -(-max(lengths) // scheme.map_block))
        tokens = sum(count for count, _ in parts)
        queries = MappedQueries(
            torch.full((maps, tokens, heads, dim), 0x7F, dtype=torch.int8),
            torch.full((maps, tokens, heads), math.nan),
            torch.full((maps, tokens, heads), math.nan),
        )
        expected, tables, row = [], [], 0
        for (count, start), length, needed in zip(parts, lengths, pages, strict=True):
            k = torch.randn(length, kv_heads, dim)
            k[..., 3] *= 8
            q, v = torch.randn(count, heads, dim) * 2, torch.randn(length, kv_heads, dim)
            values = [quantize_k(some, scheme.at(i)) for i, some in enumerate(k.split(scheme.map_block))]
            k8 = torch.cat([x for x, _ in values])
            k_scale = None if scheme.k_scale is not None else torch.cat([x for _, x in values if x is not None])
            v8, v_scale = quantize_v(v, scheme)
            table, order = order[:needed], order[needed:]
            oldest = 0 if window is None else max(0, start - window + 1)
            write(cache, table.tolist(), oldest, k8, v8, k_scale, v_scale)
            mapped = reference.map_queries(q, scheme, min(maps, -(-length // scheme.map_block)))
            for store, x in zip((queries.values, queries.scale, queries.bias), mapped, strict=True):
                for token in range(count):
                    seen = min(len(x), (start + token) // scheme.map_block + 1)
                    store[:seen, row + token] = x[:seen, token]
            expected.append(reference.attend(q, k8, v8, k_scale, v_scale, scheme, start, window))
            # Pages before the window were given back.
            table[: oldest // page_size] = -(2**20)
            tables.append((count, start, table.numpy()))
            row += count
        spans = DeviceSpans.of(Spans.of(tables), CPU)
        return cls(scheme, SchemeTables.of(scheme, CPU), cache, queries, spans, window, torch.cat(expected))

    def check(self, out: Tensor) -> None:
        """The bits of the reference."""
        different = out.view(torch.int32) != self.expected.view(torch.int32)
        assert not different.any(), f"{int(different.sum())} of {out.numel()} differ, first {different.nonzero()[:3]}"
