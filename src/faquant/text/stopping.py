"""Stop strings: where the generated text ends, and which part of it may already be shown."""

from collections.abc import Sequence
from functools import lru_cache

from ..errors import UsageError


class StopChecker:
    """Searches a text that arrives in pieces for stop strings, across the borders of the pieces.

    The text ends before the occurrence that is complete first; if two are complete at the same character, before the
    longer one. This does not depend on how the text is divided into pieces.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        if "" in stop:
            raise UsageError("A stop string cannot be empty.")
        self._searches = [_StringSearch(text) for text in stop]
        self._held = ""
        self.matched: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has occurred; `matched` names it."""
        return self.matched is not None

    def push(self, text: str) -> str:
        """Add text and return the part that is certainly before any stop string (nothing after a match)."""
        if self.stopped:
            return ""
        if not self._searches:
            return text
        self._held += text
        for index, character in enumerate(text, start=len(self._held) - len(text)):
            for search in self._searches:
                search.advance(character)
            complete = [search.text for search in self._searches if search.matched == len(search.text)]
            if complete:
                self.matched = max(complete, key=len)
                final, self._held = self._held[: index + 1 - len(self.matched)], ""
                return final
        border = len(self._held) - max(search.matched for search in self._searches)
        final, self._held = self._held[:border], self._held[border:]
        return final

    def flush(self) -> str:
        """End the text and return the part held back as the possible beginning of a stop string."""
        final, self._held = self._held, ""
        return final


class _StringSearch:
    """Knuth, Morris and Pratt's search (SIAM J. Comput. 6, 1977, p. 323): amortized constant work per character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0  # length of the longest prefix of `text` that is a suffix of the text seen so far
        self._fallback = _fallback(text)

    def advance(self, character: str) -> None:
        while self.matched and self.text[self.matched] != character:
            self.matched = self._fallback[self.matched]
        self.matched += self.text[self.matched] == character


@lru_cache(maxsize=1024)  # the answers of a request share it
def _fallback(text: str) -> Sequence[int]:
    """For each prefix of `text`, the length of its longest proper prefix that is also its suffix."""
    fallback = [0] * (len(text) + 1)
    length = 0
    for index in range(1, len(text)):
        while length and text[index] != text[length]:
            length = fallback[length]
        length += text[index] == text[length]
        fallback[index + 1] = length
    return fallback
