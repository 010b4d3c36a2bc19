"""Runs calibration prompts through one float layer, on the kernels that serve float layers.

A row's bits depend on its own prompt only, so prompts run together, and the results depend neither on how many are
together nor on the number of threads.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.model_config import ModelConfig
from ..kernels.pages import FloatPages
from ..model.decoder import DecoderLayer
from ..model.paged import Batch, Chunk
from ..model.rope import Rope

TOGETHER = 2048
"""Tokens of prompts that run together, unless a single prompt is longer. It bounds the memory of a layer's intermediate
results."""
_PAGE_SIZE = 128

Look = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Called with q [tokens, Hq, D] and k [tokens, Hkv, D] after RoPE, v, and the attention's output [tokens, Hq, D] of one
prompt."""


def through(
    config: ModelConfig,
    layer: DecoderLayer,
    streams: Sequence[Tensor],
    look: Look = lambda q, k, v, out: None,
) -> list[Tensor]:
    """The prompts' residual streams, float32 [tokens, hidden] each, after a layer with float attention."""
    after: list[Tensor] = []
    window = config.sliding_windows[layer.index]
    for some in together(streams):
        sizes = [len(stream) for stream in some]
        batch, count = _batch(config, sizes)
        pages = FloatPages(config.num_heads, config.num_kv_heads, config.head_dim, count, _PAGE_SIZE)

        attend = partial(_attend, batch, pages, window, sizes, look)
        after += torch.split(layer(torch.cat(some), batch.tables, attend), sizes)
    return after


def _attend(
    batch: Batch,
    pages: FloatPages,
    window: int | None,
    sizes: list[int],
    look: Look,
    _: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
) -> Tensor:
    out: Tensor = batch.attend(pages, window, q, k, v)
    for of_prompt in zip(*(torch.split(x, sizes) for x in (q, k, v, out)), strict=True):
        look(*of_prompt)
    return out


def together(streams: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive streams [tokens, hidden] of up to TOGETHER tokens; a longer one is alone."""
    some: list[Tensor] = []
    for stream in streams:
        if some and sum(map(len, some)) + len(stream) > TOGETHER:
            yield some
            some = []
        some.append(stream)
    if some:
        yield some


def _batch(config: ModelConfig, sizes: Sequence[int]) -> tuple[Batch, int]:
    """Prompts of these lengths in an empty cache, and the number of pages that they need."""
    chunks: list[Chunk] = []
    first = 0
    for size in sizes:
        pages = np.arange(first, first + -(-size // _PAGE_SIZE))
        chunks.append(Chunk(np.zeros(size, np.int64), 0, pages, Rope(config, size)))
        first += len(pages)
    return Batch(chunks, _PAGE_SIZE), first
