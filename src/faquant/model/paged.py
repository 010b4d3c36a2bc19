"""Running chunks of sequences through a model and its cache pages."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.pages import Pages, Spans
from .decoder import Decoder
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
        numbers = [torch.arange(chunk.start, chunk.start + len(chunk.tokens)) for chunk in chunks]
        pairs = list(zip(chunks, numbers, strict=True))
        tables = [chunk.rope.tables(number + chunk.position, dtype) for chunk, number in pairs]
        cos, sin = (torch.cat(parts) for parts in zip(*tables, strict=True))
        self.tables = cos, sin
        self.tokens = torch.cat([chunk.tokens for chunk in chunks])
        self._spans = Spans.of([(len(chunk.tokens), chunk.start, chunk.block_table) for chunk in chunks])
        self._slots = torch.cat(
            [chunk.block_table[number // page_size] * page_size + number % page_size for chunk, number in pairs]
        )
        self._positions = torch.cat(numbers)

    def attend(self, pages: Pages, window: int | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append k and v [tokens, Hkv, D] to a layer's pages; q's attention [tokens, Hq, D] there."""
        pages.append(k, v, self._slots, self._positions)
        return pages.attend(q, self._spans, window)


def run_chunks(decoder: Decoder, pages: Sequence[Pages], chunks: Sequence[Chunk]) -> Tensor:
    """Append every chunk to the cache and return the hidden states of all their tokens: [Σ n, hidden]."""
    batch = Batch(chunks, pages[0].page_size, decoder.dtype)
    windows = decoder.config.sliding_windows

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return batch.attend(pages[layer], windows[layer], q, k, v)

    return decoder.hidden(batch.tokens, batch.tables, attention)
