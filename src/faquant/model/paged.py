"""Running chunks of sequences through a model and its cache pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import cast

import torch
from torch import Tensor

from ..kernels import _C, reference, threads
from ..kernels.addresses import address
from ..kernels.pages import PackedPages, Pages, Spans
from .decoder import Decoder, Tables
from .rope import Rope


@dataclass
class Chunk:
    """The next tokens of one sequence.

    Attributes:
        tokens: int64 [n].
        start: how many tokens of the sequence stand in the cache already.
        block_table: int64 [pages], the sequence's pages in order, with room for start + n tokens.
        rope: the request's frequencies.
        position: RoPE position of the sequence's first token; not 0 only when measuring at an offset.
    """

    tokens: Tensor
    start: int
    block_table: Tensor
    rope: Rope
    position: int = 0


class Batch:
    """Chunks side by side: all their tokens in one row, and what each layer's attention does with them."""

    def __init__(self, chunks: Sequence[Chunk], page_size: int, dtype: torch.dtype = torch.float32) -> None:
        if not chunks:
            raise ValueError("There is nothing to run: no chunks.")
        self._chunks = chunks
        self._page_size = page_size
        self._dtype = dtype
        self.tokens = torch.cat([chunk.tokens for chunk in chunks])
        self.spans = Spans.of([(len(chunk.tokens), chunk.start, chunk.block_table) for chunk in chunks])

    @cached_property
    def tables(self) -> Tables:
        """Of RoPE; what has the same frequencies is computed together."""
        parts = []
        for rope, group in groupby(self._chunks, lambda chunk: chunk.rope):
            numbers = [torch.arange(c.start, c.start + len(c.tokens)) + c.position for c in group]
            parts.append(rope.tables(torch.cat(numbers), self._dtype))
        cos, sin = (torch.cat(tables) for tables in zip(*parts, strict=True))
        return cos, sin

    @cached_property
    def positions(self) -> Tensor:
        """int64 [tokens]: each token's number in its sequence."""
        return torch.cat([torch.arange(start, start + rows.stop - rows.start) for rows, start, _ in self.spans.parts])

    @cached_property
    def slots(self) -> Tensor:
        """int64 [tokens]: where its key and value go."""
        pages = torch.cat([table[self.positions[rows] // self._page_size] for rows, _, table in self.spans.parts])
        if int(pages.min()) < 0:
            raise ValueError("A span's block_table is too short.")
        return pages * self._page_size + self.positions % self._page_size

    def attend(self, pages: Pages, window: int | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append k and v [tokens, Hkv, D] to a layer's pages; q's attention [tokens, Hq, D] there."""
        pages.append(k, v, self.slots, self.positions)
        return pages.attend(q, self.spans, window)


class PagedDecoder:
    """A decoder and the cache pages of its layers. Layers of int8 linears, with an int8 or a bfloat16 cache, run in one
    call of C++, one behind the other, with the bits of DecoderLayer's own steps; others step by step.

    Weights and pages are looked at once, here: what replaces one later is not seen. `isa` forces the instruction set of
    the layers that run in one call.

    Raises:
        ValueError: layers and pages do not fit together.
    """

    def __init__(self, decoder: Decoder, pages: Sequence[Pages], isa: str | None = None) -> None:
        if len(pages) != len(decoder.layers):
            raise ValueError(f"{len(decoder.layers)} layers need the cache pages of as many, not of {len(pages)}.")
        self.decoder = decoder
        self.pages = tuple(pages)
        self._isa = isa
        self._windows = decoder.config.sliding_windows
        # What runs at once: numbers of layers, and their kernels if they are int8.
        self._runs: list[tuple[range, _C.DecoderLayers | None]] = []
        for fused, group in groupby(range(len(pages)), self._is_fused):
            numbers = list(group)
            some = range(numbers[0], numbers[-1] + 1)
            self._runs.append((some, self._kernels(some) if fused else None))

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Append every chunk to the cache and return the hidden states of all their tokens: [Σ n, hidden]."""
        batch = Batch(chunks, self.pages[0].page_size, self.decoder.dtype)
        x = self.decoder.embed(batch.tokens)
        for numbers, kernels in self._runs:
            if kernels is not None:
                self._run_kernels(kernels, numbers, batch, x)
            else:
                for layer in numbers:
                    x = self.decoder.layers[layer](x, batch.tables, partial(self._attend, batch))
        return self.decoder.norm(x)

    def copy_page(self, source: int, target: int) -> None:
        """Let one page of every layer hold what another does."""
        for pages in self.pages:
            pages.copy_page(source, target)

    def _is_fused(self, number: int) -> bool:
        return isinstance(self.pages[number], PackedPages) and self.decoder.layers[number].is_int8

    def _kernels(self, numbers: range) -> _C.DecoderLayers:
        kernels = _C.DecoderLayers()
        for number in numbers:
            layer, pages = self.decoder.layers[number], cast(PackedPages, self.pages[number])
            linears, norms = layer.kernels()
            kernels.add(linears=linears, norms=norms, cache=pages.cache, window=self._windows[number])
        return kernels

    def _run_kernels(self, kernels: _C.DecoderLayers, numbers: range, batch: Batch, x: Tensor) -> None:
        cos, sin = batch.tables
        tokens, (count, width) = len(x), batch.spans.block_tables.shape
        beyond = kernels.run(
            address("x", x, torch.float32, tokens, kernels.hidden_size),
            address("cos", cos, torch.float32, tokens, 1, kernels.head_dim),
            address("sin", sin, torch.float32, tokens, 1, kernels.head_dim),
            tokens,
            address("tokens_starts", batch.spans.tokens_starts, torch.int64, count, 2),
            address("block_tables", batch.spans.block_tables, torch.int64, count, width),
            count,
            width,
            reference.SPLIT,
            threads.count(),
            self._isa,
        )
        for number, (q, k, v) in zip(numbers, beyond, strict=True):
            cast(PackedPages, self.pages[number]).count_saturated(tokens, q=q, k=k, v=v)

    def _attend(self, batch: Batch, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return batch.attend(self.pages[layer], self._windows[layer], q, k, v)
