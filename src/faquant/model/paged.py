"""Runs chunks of sequences through a model and its cache pages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby

import numpy as np

from ..kernels.arrays import Array, Integers
from ..kernels.backend import Backend, FusedLayers, Pages
from ..kernels.pages import Spans
from .decoder import Decoder, DecoderLayer, Tables
from .rope import Rope

PAGE_SIZE = 128
"""Tokens per page of the caches of calibration and evaluation."""
TOGETHER = 2048
"""Tokens of prompts that run together, so that short ones keep all cores busy. It bounds the memory of a layer's
intermediate results."""


@dataclass
class Chunk:
    """The next tokens of one sequence.

    Attributes:
        tokens: int64 [n].
        start: how many tokens of the sequence are in the cache already.
        block_table: int64 [pages], the sequence's pages in order, with space for start + n tokens.
        rope: the request's frequencies.
        position: RoPE position of the sequence's first token; nonzero only for measurements at an offset.
    """

    tokens: Integers
    start: int
    block_table: Array
    rope: Rope
    position: int = 0


class Batch:
    """Chunks that run together: their tokens in one row, and the attention of each layer.

    Args:
        spans, slots: the chunks as Spans, and the slot for each token's key and value, int64 [tokens], if the caller
            has them. If the spans' block tables lie on a GPU, it must have both.

    Raises:
        ValueError: there are no chunks, or a block_table is too short.
    """

    def __init__(
        self, chunks: Sequence[Chunk], page_size: int, spans: Spans | None = None, slots: Array | None = None
    ) -> None:
        if not chunks:
            raise ValueError("there are no chunks to run")
        self._chunks = chunks
        self._page_size = page_size
        self._given_slots = slots
        self.tokens = np.concatenate([chunk.tokens for chunk in chunks])
        self.spans = spans or Spans.of([(len(chunk.tokens), chunk.start, chunk.block_table) for chunk in chunks])

    @classmethod
    def of_prompts(cls, prompts: Sequence[Integers], ropes: Sequence[Rope], position: int = 0) -> "Batch":
        """Whole sequences, int64 ids [tokens] each, in an empty cache with pages of PAGE_SIZE, one after another; their
        first tokens are at RoPE position `position`."""
        chunks: list[Chunk] = []
        first = 0
        for tokens, rope in zip(prompts, ropes, strict=True):
            table = np.arange(first, first - (-len(tokens) // PAGE_SIZE))
            chunks.append(Chunk(tokens, 0, table, rope, position))
            first += len(table)
        return cls(chunks, PAGE_SIZE)

    @property
    def num_pages(self) -> int:
        """The least number of pages of a cache with these block tables."""
        return 1 + max(int(chunk.block_table.max()) for chunk in self._chunks)

    @cached_property
    def tables(self) -> Tables:
        """Tables of RoPE; chunks with the same frequencies are computed together."""
        parts = []
        for rope, group in groupby(self._chunks, lambda chunk: chunk.rope):
            numbers = [np.arange(c.start, c.start + len(c.tokens)) + c.position for c in group]
            parts.append(rope.tables(np.concatenate(numbers)))
        if len(parts) == 1:
            return parts[0]
        cos, sin = (np.concatenate(tables) for tables in zip(*parts, strict=True))
        return cos, sin

    @cached_property
    def positions(self) -> Integers:
        """int64 [tokens]: the position of each token in its sequence."""
        return np.concatenate([np.arange(start, start + rows.stop - rows.start) for rows, start, _ in self.spans.parts])

    @cached_property
    def slots(self) -> Array:
        """int64 [tokens]: the slot for each token's key and value."""
        if self._given_slots is not None:
            return self._given_slots
        pages = np.concatenate([table[self.positions[rows] // self._page_size] for rows, _, table in self.spans.parts])
        if pages.min() < 0:
            raise ValueError("a span's block_table is too short")
        return pages * self._page_size + self.positions % self._page_size

    def attend(self, pages: Pages, window: int | None, q: Array, k: Array, v: Array) -> Array:
        """Append k and v [tokens, Hkv, D] to a layer's pages and return q's attention [tokens, Hq, D]."""
        pages.append(k, v, self.slots, self.positions)
        return pages.attend(q, self.spans, window)


def together(lengths: Sequence[int]) -> Iterator[slice]:
    """Consecutive prompts of these lengths that run together: up to TOGETHER tokens, or a longer one alone."""
    begin = tokens = 0
    for number, length in enumerate(lengths):
        if number > begin and tokens + length > TOGETHER:
            yield slice(begin, number)
            begin, tokens = number, 0
        tokens += length
    if lengths:
        yield slice(begin, len(lengths))


class PagedLayers:
    """Layers and their cache pages. Consecutive layers that the backend can fuse run in one call, with the same bits as
    DecoderLayer step by step.

    Weights and pages are bound here; replacing them later has no effect. `isa` forces the instruction set of fused
    layers.

    Raises:
        ValueError: layers and pages do not match.
    """

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        windows: Sequence[int | None],
        pages: Sequence[Pages],
        backend: Backend,
        isa: str | None = None,
    ) -> None:
        if len(pages) != len(layers):
            raise ValueError(f"{len(layers)} layers need as many cache pages, not {len(pages)}")
        self.pages = tuple(pages)
        self._layers, self._windows = layers, windows
        # Runs of layers: their numbers, and the call that runs them if they are fused.
        self._runs: list[tuple[range, FusedLayers | None]] = []
        fused = [backend.can_fuse(layer, each) for layer, each in zip(layers, pages, strict=True)]
        for can_fuse, group in groupby(range(len(pages)), fused.__getitem__):
            numbers = list(group)
            some = slice(numbers[0], numbers[-1] + 1)
            call = None
            if can_fuse:
                call = backend.fuse([layers[number] for number in numbers], self.pages[some], windows[some], isa)
            self._runs.append((range(some.start, some.stop), call))

    def run(self, x: Array, batch: Batch) -> Array:
        """Append the batch's tokens to the cache and return the residual stream x [tokens, hidden] after the layers; x
        itself may change."""
        for numbers, call in self._runs:
            if call is not None:
                call.run(x, batch.tables, batch.spans)
            else:
                for number in numbers:
                    x = self._layers[number](x, batch.tables, partial(self._attend, batch, number))
        return x

    def _attend(self, batch: Batch, number: int, _: int, q: Array, k: Array, v: Array) -> Array:
        return batch.attend(self.pages[number], self._windows[number], q, k, v)


class PagedDecoder:
    """A decoder and the cache pages of its layers, which are PagedLayers."""

    def __init__(self, decoder: Decoder, pages: Sequence[Pages], backend: Backend, isa: str | None = None) -> None:
        self.decoder = decoder
        self.pages = tuple(pages)
        self._layers = PagedLayers(decoder.layers, decoder.config.sliding_windows, pages, backend, isa)

    def run(self, chunks: Sequence[Chunk]) -> Array:
        """Append every chunk to the cache and return the hidden states of all tokens: [Σ n, hidden]."""
        batch = Batch(chunks, self.pages[0].page_size)
        return self.decoder.norm(self._layers.run(self.decoder.embedding[batch.tokens], batch))

    def logits(self, hidden: Array) -> Array:
        """Logits [tokens, vocab] of hidden states that `run` returned."""
        return self.decoder.lm_head(hidden)

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page in every layer."""
        for pages in self.pages:
            pages.copy_page(source, target)
