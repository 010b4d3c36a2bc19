"""Running chunks of sequences through a model and its cache pages."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.pages import Pages
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


def run_chunks(decoder: Decoder, pages: Sequence[Pages], chunks: Sequence[Chunk]) -> Tensor:
    """Append every chunk to the cache and return the hidden states of all their tokens: [Σ n, hidden]."""
    numbers = [torch.arange(chunk.start, chunk.start + len(chunk.tokens)) for chunk in chunks]
    tables = [
        chunk.rope.tables(number + chunk.position, decoder.dtype) for chunk, number in zip(chunks, numbers, strict=True)
    ]
    size = pages[0].page_size
    slots = torch.cat(
        [
            chunk.block_table[number // size] * size + number % size
            for chunk, number in zip(chunks, numbers, strict=True)
        ]
    )
    positions = torch.cat(numbers)
    ends = torch.tensor([len(chunk.tokens) for chunk in chunks]).cumsum(0).tolist()

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache = pages[layer]
        cache.append(k, v, slots, positions)
        window = decoder.config.sliding_windows[layer]
        return torch.cat(
            [
                cache.attend(q[end - len(chunk.tokens) : end], chunk.block_table, chunk.start, window)
                for chunk, end in zip(chunks, ends, strict=True)
            ]
        )

    cos, sin = (torch.cat(parts) for parts in zip(*tables, strict=True))
    return decoder.hidden(torch.cat([chunk.tokens for chunk in chunks]), (cos, sin), attention)
