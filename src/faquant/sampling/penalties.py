"""The penalties for tokens that a prompt or an answer has, and scores that are edited for a while."""

import copy
import math
from collections.abc import Iterable

import numpy as np

from .draw import Floats, Integers, check_maximum
from .params import SamplingParams


class Edit:
    """Saves the scores at some positions of a row, to restore them later.

    Raises: FaquantError: a score is NaN or +inf.
    """

    def __init__(self, row: Floats, ids: Integers) -> None:
        self._row, self._ids, self._scores = row, ids, row[ids]
        top = self._scores.max(initial=-math.inf)
        if not top < math.inf:
            check_maximum(float(top))

    def undo(self) -> None:
        self._row[self._ids] = self._scores


class History:
    """The distinct tokens that are penalized, and how often each is in the answer."""

    def __init__(self, prompt_ids: Iterable[int]) -> None:
        self._prompt_ids = np.array(list(dict.fromkeys(prompt_ids)), dtype=np.int64)
        self._prompt_places = {token: place for place, token in enumerate(self._prompt_ids.tolist())}
        self._begin()

    def beginning(self) -> "History":
        """A history with the same prompt and an empty answer."""
        other = copy.copy(self)
        other._begin()
        return other

    def _begin(self) -> None:
        self._places: dict[int, int] = {}  # of tokens that are not in the prompt
        self._ids = self._prompt_ids  # shared: replaced by a copy before anything is appended
        self._counts = np.zeros(self._ids.size)

    @property
    def _size(self) -> int:
        return len(self._prompt_places) + len(self._places)

    @property
    def ids(self) -> Integers:
        return self._ids[: self._size]

    def add(self, token: int) -> None:
        place = self._prompt_places.get(token)
        if place is None:
            place = self._places.setdefault(token, self._size)
        if place >= self._ids.size:
            spare = np.zeros(64 + place, dtype=np.int64)  # doubles the arrays, so that copies are rare
            self._ids, self._counts = np.concatenate((self._ids, spare)), np.concatenate((self._counts, spare))
        self._ids[place] = token
        self._counts[place] += 1

    def penalize(self, scores: Floats, params: SamplingParams) -> None:
        """Apply the penalties to scores [vocab] in place."""
        ids, counts = self.ids, self._counts[: self._size]
        old = scores[ids].astype(np.float64)  # avoids overflow
        old = np.where(old < 0, old * params.repetition_penalty, old / params.repetition_penalty)
        old -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
        largest = np.finfo(scores.dtype).max
        scores[ids] = np.where(np.isinf(old), old, np.clip(old, -largest, largest))
