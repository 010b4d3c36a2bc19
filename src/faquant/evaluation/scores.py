"""Applies the head to the residual streams and compares next-token distributions with the float model's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial

import torch
from torch import Tensor

from ..checkpoint.pieces import Tensors
from ..errors import CheckpointError
from ..kernels import parallel
from ..kernels.backend import Linear
from ..model.decoder import Decoder
from ..model.lazy import built
from ..model.load import Model
from .streaming import Streams, Window

_ROWS = 128
_BLOCK = 1 << 23
"""Number of logits per model in memory at a time: vocabularies are large."""
_PIECE = 16
"""Rows that a thread compares at a time: each step of log-softmax copies them."""


class Distribution:
    """Next-token distributions of some rows: log-probabilities float32 [rows, vocab], and the likeliest tokens."""

    def __init__(self, logits: Tensor) -> None:
        self.logs = logits.log_softmax(-1)
        self.top = self.logs.argmax(-1)

    @cached_property
    def probabilities(self) -> Tensor:
        """float32 [rows, vocab]."""
        return self.logs.exp()

    def divergences(self, other: "Distribution") -> Tensor:
        """KL(self ‖ other) in nats, float64 [rows].

        Raises:
            CheckpointError: a value is not finite.
        """
        kl = (self.logs - other.logs).mul_(self.probabilities).sum(-1, dtype=torch.float64)
        if not kl.isfinite().all():
            raise CheckpointError(
                "A model's logits are not finite, so there is nothing to compare. Its weights or scales are damaged."
            )
        return kl


@dataclass(frozen=True)
class Scores:
    """A model's next-token distributions compared with the float model's, at the scored tokens of one window.

    Attributes:
        kl: KL(float ‖ model) in nats, float64 [n].
        same: whether the likeliest token is the float model's, bool [n].
        loss, loss_float: -log p of the tokens that followed in nats, float64 [n - 1].
        hit, hit_float: whether the token that followed was the likeliest, bool [n - 1].
    """

    kl: Tensor
    same: Tensor
    loss: Tensor
    loss_float: Tensor
    hit: Tensor
    hit_float: Tensor

    @classmethod
    def empty(cls, count: int) -> "Scores":
        """Buffers for `count` tokens."""
        kl, loss, loss_float = (torch.zeros(size, dtype=torch.float64) for size in (count, count - 1, count - 1))
        same, hit, hit_float = (torch.zeros(size, dtype=torch.bool) for size in (count, count - 1, count - 1))
        return cls(kl, same, loss, loss_float, hit, hit_float)

    def put(self, rows: slice, p: Distribution, q: Distribution, following: Tensor) -> None:
        """Fill rows from the distributions p (float) and q, and the tokens that follow them: one per row, except for
        the last row of a window."""
        count = len(following)
        picked = (torch.arange(count), following)
        self.kl[rows] = p.divergences(q)
        self.same[rows] = p.top == q.top
        self.loss[rows] = -q.logs[picked].double()
        self.loss_float[rows] = -p.logs[picked].double()
        self.hit[rows] = q.top[:count] == following
        self.hit_float[rows] = p.top[:count] == following

    @classmethod
    def cat(cls, parts: Sequence["Scores"]) -> "Scores":
        """Concatenate several windows."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


class Heads:
    """The final norm and the head of each model, read once; models that share a decoder share them."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        vocabulary = next(iter(models.values())).config.vocab_size
        self._rows = max(1, min(_ROWS, _BLOCK // vocabulary))
        self._decoders = {name: model.decoder for name, model in models.items()}
        self._heads = _by_decoder(self._decoders)

    def is_float(self, name: str) -> bool:
        """Whether the head of that model is float."""
        return not self._heads[name].is_int8

    def logits(self, name: str, x: Tensor) -> Tensor:
        """float32 logits [n, vocab] of a model's last stream [n, hidden]."""
        return self._heads[name](self._decoders[name].norm(x)).float()

    def compare(
        self,
        streams: Sequence[tuple[str, Tensor]],
        look: Callable[[slice, list[Distribution]], None],
        done: Callable[[int], None] = lambda rows: None,
        begin: int = 0,
    ) -> None:
        """Pass the rows from `begin` on of several (model, stream [n, hidden]) to `look`, a few at a time and several
        at once, with their distributions; then call `done` with the number of finished rows, block by block."""
        for block in parallel.blocks(len(streams[0][1]), self._rows, begin):
            pieces = parallel.blocks(block.stop, _PIECE, block.start)
            logits = zip(*(torch.split(self.logits(name, x[block]), _PIECE) for name, x in streams), strict=True)
            parallel.map_in_order(
                lambda piece: look(piece[0], [Distribution(each) for each in piece[1]]),
                list(zip(pieces, logits, strict=True)),
            )
            done(block.stop)


def _by_decoder(decoders: Mapping[str, Decoder]) -> dict[str, Linear]:
    heads: dict[int, Linear] = {}
    for decoder in decoders.values():
        if id(decoder) not in heads:
            heads[id(decoder)] = built(decoder.lm_head)
    return {name: heads[id(decoder)] for name, decoder in decoders.items()}


@parallel.one_torch_thread()
@torch.inference_mode()
def score(
    heads: Heads,
    source: str,
    windows: Sequence[Window],
    streams: Streams,
    progress: Callable[[int], None] = lambda done: None,
    saved: Tensors | None = None,
    save: Callable[[Callable[[], Tensors]], None] = lambda make: None,
) -> list[dict[str, Scores]]:
    """For each window, the scores of each of its models against the float model `source`.

    Args:
        progress: called with the number of finished windows.
        save: called after each block of rows with a function that returns all scores so far.
        saved: the result of that function in an earlier call, to resume from.

    Raises:
        CheckpointError: logits are not finite.
    """
    names = [[source, *(name for name in streams if name != source and window.runs(name))] for window in windows]
    counts = [min(window.last or len(window.tokens), len(window.tokens)) for window in windows]
    # Allocate all buffers before the first logits: small blocks between large temporary ones would fragment the heap,
    # and memory would grow by gigabytes.
    results = [{name: Scores.empty(count) for name in some[1:]} for some, count in zip(names, counts, strict=True)]
    done, row = (0, 0) if saved is None else _take(results, saved)
    for number, (window, some, count) in enumerate(zip(windows, names, counts, strict=True)):
        progress(max(number, done))
        if number < done:
            continue
        following = window.tokens[len(window.tokens) - count + 1 :]
        parts = [(name, streams[name][number][-count:]) for name in some]
        put = partial(_put, [results[number][name] for name in some[1:]], following)
        keep = partial(_keep, save, results, number, count)
        heads.compare(parts, put, keep, row if number == done else 0)
    progress(len(windows))
    return results


def _put(scores: Sequence[Scores], following: Tensor, rows: slice, found: list[Distribution]) -> None:
    for each, q in zip(scores, found[1:], strict=True):
        each.put(rows, found[0], q, following[rows])


def _keep(
    save: Callable[[Callable[[], Tensors]], None],
    results: Sequence[Mapping[str, Scores]],
    window: int,
    count: int,
    rows: int,
) -> None:
    save(partial(_given, results, *((window, rows) if rows < count else (window + 1, 0))))


def _given(results: Sequence[Mapping[str, Scores]], window: int, row: int) -> Tensors:
    """All scores before this row of this window, and the unfilled rest of the buffers."""
    whole = Scores.cat([scores for some in results for scores in some.values()])
    return {field.name: getattr(whole, field.name) for field in fields(Scores)} | {"place": torch.tensor([window, row])}


def _take(results: Sequence[Mapping[str, Scores]], saved: Tensors) -> tuple[int, int]:
    """Restore the result of _given; return the window and row to resume from."""
    for field in fields(Scores):
        buffers = [getattr(scores, field.name) for some in results for scores in some.values()]
        sizes = [len(buffer) for buffer in buffers]
        for buffer, values in zip(buffers, torch.split(saved[field.name], sizes), strict=True):
            buffer.copy_(values)
    window, row = saved["place"].tolist()
    return window, row
