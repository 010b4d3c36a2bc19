"""Runs windows of text through several models, layer by layer, with one float and one quantized layer in memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..kernels.saturation import Saturation
from ..model.decoder import DecoderLayer
from ..model.load import Model
from ..model.paged import Batch, Chunk
from ..model.rope import Rope

PAGE_SIZE = 128

Progress = Callable[[int, int], None]
"""Called with (steps done, total steps)."""

Streams = dict[str, list[Tensor]]
"""Residual streams [tokens, hidden] by model and window; without tokens if the model does not run the window."""


@dataclass(frozen=True)
class Window:
    """Tokens that run as one prompt through fresh cache pages.

    Attributes:
        tokens: int64 [n].
        position: RoPE position of the first one; 0 or another multiple of TILE.
        last: how many tokens at the end are scored; None: all.
        models: which models run it; None: all.
        rope_length: the request's maximum length, if it is not position + n.
    """

    tokens: Tensor
    position: int = 0
    last: int | None = None
    models: frozenset[str] | None = None
    rope_length: int | None = None

    def runs(self, model: str) -> bool:
        """Whether this model runs it."""
        return self.models is None or model in self.models

    def batch(self, model: Model) -> Batch:
        """The window as a chunk in an empty cache."""
        length = self.rope_length or min(self.position + len(self.tokens), model.config.max_position)
        chunk = Chunk(self.tokens.numpy(), 0, np.arange(self.pages), Rope(model.config, length), self.position)
        return Batch([chunk], PAGE_SIZE)

    @property
    def pages(self) -> int:
        """Number of pages that it needs."""
        return -(-len(self.tokens) // PAGE_SIZE)


@dataclass
class Layers:
    """One layer of every model, the streams before and after it, and the saturation of its cache."""

    index: int
    layers: dict[str, DecoderLayer]
    before: Streams
    after: Streams = field(default_factory=dict)
    saturation: dict[str, Saturation] = field(default_factory=dict)


@torch.inference_mode()
def run(
    models: Mapping[str, Model],
    windows: Sequence[Window],
    look: Callable[[Layers], None] = lambda layers: None,
    progress: Progress = lambda done, total: None,
    begin: tuple[int, Streams] | None = None,
    save: Callable[[int, Streams], None] = lambda done, streams: None,
) -> Streams:
    """The streams of all windows after the last layer of each model, before the final norm.

    Models that share a layer with float attention share its output for the same stream. After each layer, `look` is
    called while the layer is in memory, and then `save` with the number of finished layers and the streams after them;
    `begin` is what an earlier call has saved, to resume from.
    """
    first = next(iter(models.values()))
    batches = [window.batch(first) for window in windows]
    done, streams = begin or (0, _embedded(models, windows))
    total = first.config.num_layers
    for index in range(done, total):
        progress(index, total)
        shared = {id(model.decoder): model.decoder.layers[index] for model in models.values()}
        step = Layers(index, {name: shared[id(model.decoder)] for name, model in models.items()}, streams)
        known: dict[tuple[int, int], Tensor] = {}
        for name, model in models.items():
            saturation = step.saturation[name] = Saturation()
            layer, is_float = step.layers[name], model.schemes[index] is None
            step.after[name] = []
            for window, batch, x in zip(windows, batches, streams[name], strict=True):
                if not window.runs(name):
                    after = x
                elif is_float and (id(layer), id(x)) in known:
                    after = known[id(layer), id(x)]
                else:
                    after = _through(model, layer, window, batch, x, saturation)
                    if is_float:
                        known[id(layer), id(x)] = after
                step.after[name].append(after)
        look(step)
        streams = step.after
        save(index + 1, streams)
        # Free them before the next layer is read, to have only one of each in memory.
        del shared, step, layer
    progress(total, total)
    return streams


def _embedded(models: Mapping[str, Model], windows: Sequence[Window]) -> Streams:
    """The streams into the first layer; each embedding is read once."""
    tokens = torch.cat([window.tokens for window in windows])
    sizes = [len(window.tokens) for window in windows]
    rows = {
        key: torch.split(torch.as_tensor(decoder.embed(tokens.numpy())), sizes)
        for key, decoder in {id(model.decoder.embedding): model.decoder for model in models.values()}.items()
    }
    return {
        name: [
            x if window.runs(name) else x[:0]
            for window, x in zip(windows, rows[id(model.decoder.embedding)], strict=True)
        ]
        for name, model in models.items()
    }


def _through(
    model: Model, layer: DecoderLayer, window: Window, batch: Batch, x: Tensor, saturation: Saturation
) -> Tensor:
    pages = model.make_layer_pages(layer.index, window.pages, PAGE_SIZE, window.position)
    pages.saturation = saturation
    sliding = model.config.sliding_windows[layer.index]
    return layer(x, batch.tables, lambda _, q, k, v: batch.attend(pages, sliding, q, k, v))
