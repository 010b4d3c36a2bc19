"""A needle in a haystack: a number that stands once in a long text has to be said at its end."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .scores import Scores
from .streaming import Window

SHORTEST = 512
_NEEDLE = "\n\nThe secret number of the warehouse is {}.\n\n"
_QUESTION = "\n\nThe secret number of the warehouse is"
_TRIALS_SEED = 20


@dataclass(frozen=True)
class Row:
    """At this length, in tokens: how many needles were said, and the share of their tokens that were."""

    length: int
    found_float: int
    found: int
    tokens_float: float
    tokens: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "length": self.length,
            "float": self.found_float,
            "quantized": self.found,
            "float_tokens": self.tokens_float,
            "quantized_tokens": self.tokens,
        }


@dataclass(frozen=True)
class Needle:
    """How many needles the float model finds, and how many the quantized one."""

    trials: int
    rows: list[Row]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"trials": self.trials, "rows": [row.to_json() for row in self.rows]}


def needle_windows(
    encode: Callable[[str], list[int]], filler: Sequence[int], longest: int, trials: int, models: frozenset[str]
) -> list[Window]:
    """`trials` windows, the needle at as many depths, of 512, 1,024, … tokens up to `longest`.

    Greedy decoding says the number exactly if each of its tokens is the likeliest behind those before it, and so the
    number stands at the end of the window, to be run as a prompt.
    """
    windows = []
    length = SHORTEST
    while length <= longest and filler and trials:
        for trial in range(trials):
            number = str(random.Random(_TRIALS_SEED * length + trial).randint(10_000, 99_999))
            needle, question, answer = (encode(text) for text in (_NEEDLE.format(number), _QUESTION, f" {number}"))
            space = length - len(needle) - len(question) - len(answer)
            haystack = [filler[i % len(filler)] for i in range(space)]
            depth = space * (2 * trial + 1) // (2 * trials)
            ids = [*haystack[:depth], *needle, *haystack[depth:], *question, *answer]
            windows.append(Window(torch.tensor(ids), last=len(answer) + 1, models=models))
        length *= 2
    return windows


def needle_result(
    windows: Sequence[Window], scores: Sequence[Mapping[str, Scores]], trials: int, variant: str
) -> Needle | None:
    """From the scores of needle_windows; None without any."""
    if not windows:
        return None
    rows = []
    for start in range(0, len(windows), trials):
        found = [scores[number][variant] for number in range(start, start + trials)]
        whole = Scores.cat(found)
        rows.append(
            Row(
                length=len(windows[start].tokens),
                found_float=sum(bool(one.hit_float.all()) for one in found),
                found=sum(bool(one.hit.all()) for one in found),
                tokens_float=float(whole.hit_float.double().mean()),
                tokens=float(whole.hit.double().mean()),
            )
        )
    return Needle(trials, rows)
