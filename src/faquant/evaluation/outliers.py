"""Outlier channels of the float model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

THRESHOLD = 8.0
LISTED = 30
LISTED_OF_EACH = 3
MEAN_OF_K = "k, mean before RoPE"


@dataclass(frozen=True)
class Outlier:
    """A channel whose root mean square (or mean) is `ratio` times the median root mean square of its head.

    `head` is None for the residual stream and the linears' inputs. The same channel is an outlier in `layers` layers;
    its ratio is largest in `layer`.
    """

    layer: int
    tensor: str
    head: int | None
    channel: int
    ratio: float
    layers: int

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class Channels:
    """Sums over tokens for each channel, layer by layer."""

    def __init__(self) -> None:
        self._layer = -1
        self._sums: dict[str, tuple[Tensor, Tensor, int]] = {}
        self._found: dict[tuple[str, int | None, int], Outlier] = {}

    def add(self, layer: int, values: Mapping[str, Tensor]) -> None:
        """Add one window's values, [tokens, channels] or [tokens, heads, D] by name; layers must be in order."""
        if layer != self._layer:
            self._close()
            self._layer = layer
        for name, x in values.items():
            total, squares, tokens = self._sums.get(name, (torch.zeros(()), torch.zeros(()), 0))
            wide = x.double()
            self._sums[name] = total + wide.sum(0), squares + wide.square().sum(0), tokens + len(x)

    def state(self) -> list[dict[str, Any]]:
        """The outliers of the layers so far, as JSON values."""
        self._close()
        return [outlier.to_json() for outlier in self._found.values()]

    def restore(self, state: Sequence[dict[str, Any]]) -> None:
        """Restore from the result of `state`."""
        found = [Outlier(**values) for values in state]
        self._found = {(outlier.tensor, outlier.head, outlier.channel): outlier for outlier in found}

    def largest(self) -> list[Outlier]:
        """The largest outliers first; only a few per tensor, because some have hundreds."""
        self._close()
        ordered = sorted(self._found.values(), key=lambda outlier: -outlier.ratio)
        kinds: Counter[str] = Counter()
        listed = []
        for outlier in ordered:
            kinds[outlier.tensor] += 1
            if kinds[outlier.tensor] <= LISTED_OF_EACH:
                listed.append(outlier)
        return listed[:LISTED]

    def _close(self) -> None:
        for name, (total, squares, tokens) in self._sums.items():
            rms = (squares / tokens).sqrt()
            size = (total / tokens).abs() if name == MEAN_OF_K else rms
            ratios = size / rms.median(-1, keepdim=True).values.clamp_min(1e-30)
            for place in (ratios > THRESHOLD).nonzero().tolist():
                self._note(name, place[0] if len(place) > 1 else None, place[-1], float(ratios[tuple(place)]))
        self._sums.clear()

    def _note(self, name: str, head: int | None, channel: int, ratio: float) -> None:
        known = self._found.get((name, head, channel))
        layers = 1 if known is None else known.layers + 1
        if known is None or ratio > known.ratio:
            outlier = Outlier(self._layer, name, head, channel, ratio, layers)
        else:
            outlier = Outlier(known.layer, name, head, channel, known.ratio, layers)
        self._found[name, head, channel] = outlier
