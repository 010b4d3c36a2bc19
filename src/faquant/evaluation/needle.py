"""Needle in a haystack: a number that occurs once in a long text must be repeated at its end."""

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
    """For one length in tokens: how many needles were found, and the share of their tokens."""

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
    """How many needles the float and the quantized model find."""

    trials: int
    rows: list[Row]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"trials": self.trials, "rows": [row.to_json() for row in self.rows]}


def needle_windows(
    encode: Callable[[str], list[int]], filler: Sequence[int], longest: int, trials: int, models: frozenset[str]
) -> list[Window]:
    """Windows of 512, 1,024, … tokens up to `longest`, `trials` of each, with the needle at different depths.

    Greedy decoding outputs the number if and only if each of its tokens is the likeliest after the preceding ones. So
    the window ends with the number, and runs as a prompt.
    """
    windows = []
    length = SHORTEST
    while length <= longest and filler and trials:
        for trial in range(trials):
            number = random.Random(_TRIALS_SEED * length + trial).randint(10_000, 99_999)
            prompt, answer = haystack(encode, filler, length, (2 * trial + 1) / (2 * trials), number)
            windows.append(Window(torch.tensor(prompt + answer), last=len(answer) + 1, models=models))
        length *= 2
    return windows


def haystack(
    encode: Callable[[str], list[int]], filler: Sequence[int], length: int, depth: float, number: int
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt that asks for the number, which occurs after the share `depth` of it, and of the answer;
    `length` together."""
    needle, question, answer = (encode(text) for text in (_NEEDLE.format(number), _QUESTION, f" {number}"))
    space = length - len(needle) - len(question) - len(answer)
    before = int(space * depth)
    hay = [filler[i % len(filler)] for i in range(space)]
    return [*hay[:before], *needle, *hay[before:], *question], answer


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
