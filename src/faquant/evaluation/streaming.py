"""Runs windows of text through several models, layer by layer, with one float and one quantized layer in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from ..kernels.arrays import to_numpy
from ..kernels.parallel import one_torch_thread
from ..kernels.saturation import Saturation
from ..model.decoder import DecoderLayer
from ..model.load import Model
from ..model.paged import PAGE_SIZE, Batch, together
from ..model.rope import Rope

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
        return _batch([self], model)


@dataclass
class Layers:
    """One layer of every model, the streams before and after it, and the saturation of its cache."""

    index: int
    layers: dict[str, DecoderLayer]
    before: Streams
    after: Streams = field(default_factory=dict)
    saturation: dict[str, Saturation] = field(default_factory=dict)


@one_torch_thread()
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
    groups = [_Group(numbers, [windows[number] for number in numbers], first) for numbers in _groups(windows)]
    done, streams = begin or (0, _embedded(models, windows))
    total = first.config.num_layers
    for index in range(done, total):
        progress(index, total)
        shared = {id(model.decoder): model.decoder.layers[index] for model in models.values()}
        step = Layers(index, {name: shared[id(model.decoder)] for name, model in models.items()}, streams)
        known: dict[tuple[int, ...], list[Tensor]] = {}
        for name, model in models.items():
            saturation = step.saturation[name] = Saturation()
            layer, is_float = step.layers[name], model.schemes[index] is None
            step.after[name] = []
            for group in groups:
                some = [streams[name][number] for number in group.numbers]
                key = id(layer), *map(id, some)
                if not group.windows[0].runs(name):
                    after = some
                elif is_float and key in known:
                    after = known[key]
                else:
                    after = group.through(model, layer, some, saturation)
                    if is_float:
                        known[key] = after
                step.after[name] += after
        look(step)
        streams = step.after
        save(index + 1, streams)
        # Free them before the next layer is read, to have only one of each in memory.
        del shared, step, layer
    progress(total, total)
    return streams


def _groups(windows: Sequence[Window]) -> Iterator[range]:
    """The numbers of consecutive windows that the same models run together at the same position."""
    first = 0
    for _, alike in groupby(windows, lambda window: (window.position, window.models)):
        lengths = [len(window.tokens) for window in alike]
        for some in together(lengths):
            yield range(first + some.start, first + some.stop)
        first += len(lengths)


class _Group:
    """Windows that run together. Their results do not depend on one another."""

    def __init__(self, numbers: Sequence[int], windows: Sequence[Window], model: Model) -> None:
        self.numbers, self.windows = numbers, windows
        self._batch = _batch(windows, model)

    def through(self, model: Model, layer: DecoderLayer, streams: list[Tensor], saturation: Saturation) -> list[Tensor]:
        """The streams [tokens, hidden] of its windows after `layer`; the cache's counts are added to `saturation`."""
        pages = model.make_layer_pages(layer.index, self._batch.num_pages, PAGE_SIZE, self.windows[0].position)
        sliding = model.config.sliding_windows[layer.index]
        x = layer(
            torch.cat(streams), self._batch.tables, lambda _, q, k, v: self._batch.attend(pages, sliding, q, k, v)
        )
        saturation.add(pages.saturation)
        return list(x.split([len(stream) for stream in streams]))


def _batch(windows: Sequence[Window], model: Model) -> Batch:
    """Windows at one position in an empty cache."""
    ropes = []
    for window in windows:
        length = window.rope_length or min(window.position + len(window.tokens), model.config.max_position)
        ropes.append(Rope(model.config, length))
    return Batch.of_prompts([window.tokens.numpy() for window in windows], ropes, windows[0].position)


def _embedded(models: Mapping[str, Model], windows: Sequence[Window]) -> Streams:
    """The streams into the first layer; each embedding is read once."""
    tokens = torch.cat([window.tokens for window in windows])
    sizes = [len(window.tokens) for window in windows]
    rows = {
        key: torch.split(torch.as_tensor(to_numpy(decoder.embed(tokens.numpy()))), sizes)
        for key, decoder in {id(model.decoder.embedding): model.decoder for model in models.values()}.items()
    }
    return {
        name: [
            x if window.runs(name) else x[:0]
            for window, x in zip(windows, rows[id(model.decoder.embedding)], strict=True)
        ]
        for name, model in models.items()
    }
