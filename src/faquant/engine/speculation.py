"""Speculative decoding by prompt lookup: propose the tokens that followed the same words earlier in the sequence.

Verifying draft tokens in one step is from Leviathan et al. 2023, arXiv:2211.17192; taking them from the text itself is
Saxena's prompt lookup decoding (2023). A draft token is accepted only if the sampler draws the same token from the same
logits, so speculation never changes the answer, with greedy sampling or any other.
"""

from collections.abc import Sequence

import numpy as np

Text = np.ndarray[tuple[int], np.dtype[np.int32]]

LONGEST, SHORTEST = 4, 2
"""Length of a match, in tokens. Longer matches are no better, and shorter ones are ignored."""
_SPARE = 1024
_RECENT = 1024
"""Tokens searched first, because repetitions are usually close."""


class PromptLookup:
    """Searches the tokens of one growing sequence."""

    def __init__(self) -> None:
        self._ids = np.empty(0, np.int32)
        self._known = 0

    def propose(self, ids: Sequence[int], count: int) -> list[int]:
        """Up to `count` draft tokens for `ids`, which must begin with the `ids` of the last call.

        They followed the longest earlier match of the last tokens of `ids`; among equally long matches, the latest.
        """
        if len(ids) <= SHORTEST:
            return []
        text = self._append(ids)
        recent = max(0, len(ids) - _RECENT)
        length, place = _last_run(text, recent, len(ids) - 1)
        if length < LONGEST and recent:
            length, place = max((length, place), _last_run(text, 0, recent))
        return list(ids[place : place + count]) if length >= SHORTEST else []

    def _append(self, ids: Sequence[int]) -> Text:
        if len(ids) > self._ids.size:
            grown = np.empty(len(ids) + max(_SPARE, len(ids) // 4), np.int32)
            grown[: self._known] = self._ids[: self._known]
            self._ids = grown
        self._ids[self._known : len(ids)] = ids[self._known :]
        self._known = len(ids)
        return self._ids[: self._known]


def _last_run(text: Text, begin: int, end: int) -> tuple[int, int]:
    """Length and end of the longest match of the text's end that ends in (begin, end]; the latest of equally long ones.

    A token must follow the match, so `end` is less than the text's length.
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
