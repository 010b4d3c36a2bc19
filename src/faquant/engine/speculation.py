"""Guessing the next tokens by prompt lookup: what followed the last time that the text ended so.

Leviathan et al. 2023, arXiv:2211.17192, is the idea of checking guesses in one step; guesses from the text itself are
Saxena's prompt lookup decoding (2023). A guess is kept where it is the very token that the sampler draws from the same
logits, so the answer is the one without guessing, greedy or not.
"""

from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2
"""Tokens that must stand there alike."""


class PromptLookup:
    """The places of one sequence's runs of tokens; follows the sequence as it grows."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # run → where it last ended, its own last place excluded
        self._known = 0

    def guess(self, ids: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that may follow `ids`, which has grown since the last call or stayed."""
        # A run is filed when a token stands behind it; the one at the very end has none yet.
        for end in range(max(self._known, 1), len(ids)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._ends[tuple(ids[end - length : end])] = end
        self._known = len(ids)
        for length in range(min(LONGEST, len(ids) - 1), SHORTEST - 1, -1):
            place = self._ends.get(tuple(ids[len(ids) - length :]))
            if place is not None:
                return list(ids[place : place + count])
        return []
