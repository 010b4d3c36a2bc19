"""How well calibrated tables fit texts: the share of q, K and V beyond their ranges; no float model is needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import CheckpointError
from ..kernels.arrays import Array
from ..kernels.backend import Pages
from ..kernels.saturation import Saturation
from ..model.load import load
from ..model.paged import PAGE_SIZE, Batch
from ..model.rope import Rope
from ..text.tokenizer import Tokenizer
from .limits import CLIPPED_NOTABLY
from .texts import builtin_texts

TOKENS = 512
"""Tokens of each text."""


@dataclass(frozen=True)
class Fit:
    """Shares of the values of q, k and v beyond their calibrated ranges, for each layer; empty: nothing is calibrated.

    `tokens` is the number of tokens that were measured.
    """

    layers: list[dict[str, float]]
    tokens: int

    @property
    def worst(self) -> dict[str, tuple[float, int]]:
        """The greatest share of each of q, k and v, and its layer."""
        names = sorted({name for shares in self.layers for name in shares})
        greatest = {}
        for name in names:
            shares = [layer.get(name, 0.0) for layer in self.layers]
            greatest[name] = max(shares), shares.index(max(shares))
        return greatest

    @property
    def misfits(self) -> bool:
        """Whether so many values are clipped that the tables do not belong to the data."""
        return any(share > CLIPPED_NOTABLY for share, _ in self.worst.values())


def measure_fit(
    directory: Path,
    texts: Sequence[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Fit:
    """Run texts through the model in `directory`, one layer in memory at a time; this reads all weights.

    Args:
        texts: None: the built-in texts.
        progress: called with (layers done, all layers).

    Raises:
        CheckpointError, UnsupportedError: the model cannot be loaded, or a weight is not finite.
    """
    tokenizer = Tokenizer.from_directory(directory)
    model = load(directory, lazy=True)
    limit = min(TOKENS, model.max_position)
    prompts = [tokenizer.encode(text)[:limit] for text in texts or builtin_texts().values()]
    if max(max(ids) for ids in prompts) >= model.config.vocab_size:
        raise CheckpointError(f"The tokenizer of {directory} does not belong to the model: its ids are too large.")
    batches = [Batch.of_prompts([np.array(ids, np.int64)], [Rope(model.config, len(ids))]) for ids in prompts]
    streams = [model.decoder.embed(batch.tokens) for batch in batches]
    layers = []
    for index in range(model.config.num_layers):
        progress(index, model.config.num_layers)
        layer, saturation = model.decoder.layers[index], Saturation()
        for number, batch in enumerate(batches):
            pages = model.make_layer_pages(index, batch.num_pages, PAGE_SIZE)
            attend = partial(_attend, batch, pages, model.config.sliding_windows[index])
            streams[number] = layer(streams[number], batch.tables, attend)
            saturation.add(pages.saturation)
        layers.append(saturation.shares())
        del layer  # before the next one is read
    model.decoder.logits(streams[0][-1:])  # reads the head, whose values are checked too
    progress(model.config.num_layers, model.config.num_layers)
    return Fit(layers, sum(map(len, prompts)))


def _attend(batch: Batch, pages: Pages, window: int | None, layer: int, q: Array, k: Array, v: Array) -> Array:
    return batch.attend(pages, window, q, k, v)
