"""Measures whether the error grows with the position: the same text at several positions, and one long context.

At a border between two of K's maps their difference matters: what all keys of one map share cancels in the softmax, and
an error in it shows only if a query sees keys of both. So the moved text lies across borders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.pieces import Keep, Tensors, keep_nothing
from ..kernels.scheme import MAP_BLOCK, TILE
from .limits import FLOAT_DRIFT
from .scores import Distribution, Heads, Scores
from .streaming import Window


@dataclass(frozen=True)
class Offsets:
    """Mean KL in nats of one text whose first token is at each of `offsets`, by variant.

    `float_drift` is KL(float at the first offset ‖ float at this one), which must be negligible: with RoPE, attention
    depends only on the distance between tokens.
    """

    text: str
    tokens: int
    offsets: list[int]
    variants: dict[str, list[float]]
    float_drift: list[float]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @property
    def drifts(self) -> bool:
        """Whether the float model itself depends on the offset."""
        return max(self.float_drift) > FLOAT_DRIFT


@dataclass(frozen=True)
class Long:
    """Mean KL in nats of one long context between consecutive `edges`, by variant."""

    tokens: int
    edges: list[int]
    variants: dict[str, list[float]]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def offset_windows(tokens: Sequence[int], context: int, models: frozenset[str]) -> list[Window]:
    """The text at 0, and across a border of K's maps at ¼, ½, ¾ and the end of the context; none if only 0 fits.

    About half of the text, in whole tiles, lies before the border, and at most half a block. A text that fits in one
    tile begins at the border.
    """
    count = len(tokens)
    before = min(max(count // 2, TILE), MAP_BLOCK // 2) // TILE * TILE if count > TILE else 0
    places = range(MAP_BLOCK - before, context - count + 1, MAP_BLOCK)
    if not places or count < 2:
        return []
    offsets = {0, places[-1], *(places[len(places) * part // 4] for part in (1, 2, 3))}
    ids = torch.tensor(tokens, dtype=torch.int64)
    # The same frequencies for all: in some kinds of RoPE they depend on the request's length.
    return [Window(ids, offset, models=models, rope_length=context) for offset in sorted(offsets)]


def float_drift(heads: Heads, source: str, streams: Sequence[Tensor], keep: Keep = keep_nothing) -> list[float]:
    """Mean KL in nats between the float model at the first offset and at each of them."""

    def between(x: Tensor) -> Tensors:
        kl = torch.empty(len(x), dtype=torch.float64)

        def put(rows: slice, found: list[Distribution]) -> None:
            kl[rows] = found[0].divergences(found[1])

        heads.compare([(source, streams[0]), (source, x)], put)
        return {"kl": kl.mean()}

    return [float(keep(f"drift-{number}", partial(between, x))["kl"]) for number, x in enumerate(streams)]


def offsets_result(
    text: str, windows: Sequence[Window], scores: Sequence[Mapping[str, Scores]], drift: list[float]
) -> Offsets | None:
    """From the scores of offset_windows; None without any."""
    if not windows:
        return None
    variants = {name: [float(at[name].kl.mean()) for at in scores] for name in scores[0]}
    return Offsets(text, len(windows[0].tokens), [window.position for window in windows], variants, drift)


def long_windows(tokens: Sequence[int], models: frozenset[str]) -> list[Window]:
    """One long window, or none if the context is short."""
    return [Window(torch.tensor(tokens), models=models)] if len(tokens) >= 2 * MAP_BLOCK else []


def long_result(windows: Sequence[Window], scores: Sequence[Mapping[str, Scores]]) -> Long | None:
    """The long window's KL in segments of MAP_BLOCK tokens; a short last one is merged with the previous one."""
    if not windows:
        return None
    count = len(windows[0].tokens)
    edges = [*range(0, count - MAP_BLOCK // 4, MAP_BLOCK), count]
    variants = {
        name: [float(scored.kl[low:high].mean()) for low, high in pairwise(edges)] for name, scored in scores[0].items()
    }
    return Long(count, edges, variants)
