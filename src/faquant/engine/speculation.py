"""Guessing the next tokens by prompt lookup: what followed the last time that the text ended so.

Leviathan et al. 2023, arXiv:2211.17192, is the idea of checking guesses in one step; guesses from the text itself are
Saxena's prompt lookup decoding (2023). A guess is kept where it is the very token that the sampler draws from the same
logits, so the answer is the one without guessing, greedy or not.
"""

from collections.abc import Sequence

import numpy as np

LONGEST, SHORTEST = 4, 2
"""Tokens that must stand there alike."""
_ROOM = 1024


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
        # A run counts where a token stands behind it; the one at the very end has none yet.
        ends = np.flatnonzero(text[:-1] == text[-1]) + 1
        place = None
        for length in range(2, LONGEST + 1):
            ends = ends[ends >= length]
            ends = ends[text[ends - length] == text[-length]]
            if not ends.size:
                break
            if length >= SHORTEST:
                place = int(ends[-1])
        return [] if place is None else list(ids[place : place + count])

    def _follow(self, ids: Sequence[int]) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
        if len(ids) > self._ids.size:
            room = np.empty(len(ids) + max(_ROOM, len(ids) // 4), np.int32)
            room[: self._known] = self._ids[: self._known]
            self._ids = room
        self._ids[self._known : len(ids)] = ids[self._known :]
        self._known = len(ids)
        return self._ids[: self._known]
