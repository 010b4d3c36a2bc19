"""Runs calibration prompts through one float layer, on the kernels that serve float layers.

A row's bits depend on its own prompt only, so prompts run together, and the results depend neither on how many are
together nor on the number of threads.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.model_config import ModelConfig
from ..kernels.pages import FloatPages
from ..model import paged
from ..model.decoder import DecoderLayer
from ..model.rope import Rope

Look = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Called with q [tokens, Hq, D] and k [tokens, Hkv, D] after RoPE, v, and the attention's output [tokens, Hq, D] of one
prompt."""


class States(NamedTuple):
    """q [tokens, Hq, D], k and v [tokens, Hkv, D] of one layer after RoPE, for each prompt."""

    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]


def through(
    config: ModelConfig, layer: DecoderLayer, streams: Sequence[Tensor], look: Look = lambda q, k, v, out: None
) -> list[Tensor]:
    """The prompts' residual streams, float32 [tokens, hidden] each, after a layer with float attention."""
    return [stream for some in together(streams) for stream in _through(config, layer, some, look)]


def states_through(config: ModelConfig, layer: DecoderLayer, streams: Sequence[Tensor]) -> tuple[States, list[Tensor]]:
    """The states of a layer with float attention, and the prompts' residual streams after it."""
    states = States([], [], [])

    def look(q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> None:
        for kept, x in zip(states, (q, k, v), strict=True):
            kept.append(x)

    return states, through(config, layer, streams, look)


def together(streams: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The streams [tokens, hidden] of prompts that run together."""
    return (list(streams[some]) for some in paged.together([len(stream) for stream in streams]))


def _through(config: ModelConfig, layer: DecoderLayer, streams: list[Tensor], look: Look) -> Sequence[Tensor]:
    """As `through`, for prompts that run together."""
    sizes = [len(stream) for stream in streams]
    # Only the number of tokens matters, because the streams are given.
    batch = paged.Batch.of_prompts([np.zeros(size, np.int64) for size in sizes], [Rope(config, size) for size in sizes])
    pages = FloatPages(config.num_heads, config.num_kv_heads, config.head_dim, batch.num_pages, paged.PAGE_SIZE)
    window = config.sliding_windows[layer.index]

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = batch.attend(pages, window, q, k, v)
        for of_prompt in zip(*(torch.split(x, sizes) for x in (q, k, v, out)), strict=True):
            look(*of_prompt)
        return out

    return torch.split(layer(torch.cat(streams), batch.tables, attend), sizes)
