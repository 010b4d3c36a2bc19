"""Guessing the next tokens by prompt lookup: what followed the last time that the text ended so.

Leviathan et al. 2023, arXiv:2211.17192, is the idea of checking guesses in one step; guesses from the text itself are
Saxena's prompt lookup decoding (2023). A guess is kept where it is the very token that the sampler draws from the same
logits, so the answer is the one without guessing, greedy or not.
"""

from collections.abc import Sequence

import numpy as np

Text = np.ndarray[tuple[int], np.dtype[np.int32]]

LONGEST, SHORTEST = 4, 2
"""Tokens that must stand there alike."""
_ROOM = 1024
_RECENT = 1024
"""Looked at first: a text that repeats itself has done so lately."""


class PromptLookup:
    """One sequence's tokens, to be searched; follows the sequence as it grows."""

    def __init__(self) -> None:
        self._ids = np.empty(0, np.int32)
        self._known = 0

    def guess(self, ids: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that may follow `ids`, which has grown since the last call or stayed.

        They stood behind the longest run of tokens that `ids` ends with too, the last such place first.
        """
        if len(ids) <= SHORTEST:
            return []
        text = self._follow(ids)
        recent = max(0, len(ids) - _RECENT)
        length, place = _last_run(text, recent, len(ids) - 1)
        if length < LONGEST and recent:
            length, place = max((length, place), _last_run(text, 0, recent))
        return list(ids[place : place + count]) if length >= SHORTEST else []

    def _follow(self, ids: Sequence[int]) -> Text:
        if len(ids) > self._ids.size:
            room = np.empty(len(ids) + max(_ROOM, len(ids) // 4), np.int32)
            room[: self._known] = self._ids[: self._known]
            self._ids = room
        self._ids[self._known : len(ids)] = ids[self._known :]
        self._known = len(ids)
        return self._ids[: self._known]


def _last_run(text: Text, begin: int, end: int) -> tuple[int, int]:
    """The most tokens that `text` ends with and that stand before a place in (begin, end] too, and the last such place.

    A token must stand behind it, so `end` is below the text's.
    """
    ends = np.flatnonzero(text[begin:end] == text[-1]) + begin + 1
    found = (0, 0)
    for length in range(1, LONGEST + 1):
        if length > 1:
            ends = ends[ends >= length]
            ends = ends[text[ends - length] == text[-length]]
        if not ends.size:
            break
        found = (length, int(ends[-1]))
    return found
