"""Free text until a tool call begins; from there on only valid calls that end within the token limit."""

import sys
from collections.abc import Callable, Collection

from ...errors import UsageError
from ..constraint import Bits, Constraint
from ..vocabulary import Vocabulary
from .opening import Opening, SplitText


class CallConstraint:
    """The `Constraint` of an answer that may call tools. The answer ends before a call that would exceed the limit.

    Args:
        begin: creates the constraint of calls that begin with the given text and end within the given number of tokens;
            returns None if there are none.
        shown: special tokens that are part of the answer's text.
    """

    def __init__(
        self,
        opening: Opening,
        vocabulary: Vocabulary,
        end_token_ids: Collection[int],
        shown: Collection[int],
        begin: Callable[[str, int], Constraint | None],
    ) -> None:
        self.shown = frozenset(shown)
        self.unwatched_from: int | None = None
        self._opening = opening.as_bytes()
        self._vocabulary = vocabulary
        self._ends = frozenset(end_token_ids)
        self._begin = begin
        self._calls: Constraint | None = None
        self.is_cut = False
        self._held, self._at_start, self._ended = "", True, False
        self._count = 0
        self._tried: tuple[int, SplitText | None, Constraint | None] | None = None

    @property
    def may_end(self) -> bool:
        return self.is_cut or self._calls is None or self._calls.may_end

    @property
    def must_end(self) -> bool:
        return self._ended or self.is_cut or (self._calls is not None and self._calls.must_end)

    @property
    def is_past_end(self) -> bool:
        return self._calls is not None and self._calls.is_past_end

    @property
    def is_free(self) -> bool:
        return self._calls is None or self._calls.is_free

    def mask(self) -> Bits | None:
        return None if self._calls is None else self._calls.mask()

    def admits(self, token: int, left: int) -> bool:
        if self._calls is not None:
            return self._calls.admits(token, left)
        self._tried = (token, None, None)
        if token in self._ends:
            return True
        text = self._held + self._vocabulary.shown_text(token, self.shown).decode("latin-1")
        split = self._opening.split(text, self._at_start)
        calls = None if split.calls is None else self._begin(split.calls, left)
        is_wrong = split.calls is not None and calls is None and self._begin(split.calls, sys.maxsize) is None
        self._tried = None if is_wrong else (token, split, calls)
        return not is_wrong

    def fallback(self) -> int:
        return min(self._ends) if self._calls is None else self._calls.fallback()

    def accept(self, token: int) -> None:
        if self._calls is not None:
            self._calls.accept(token)
            return
        if self._tried is None or self._tried[0] != token:
            raise UsageError(f"The token {token} was not admitted before it was accepted.")
        _, split, calls = self._tried
        self._tried = None
        if split is None:
            self._ended = True
            return
        self.is_cut = split.calls is not None and calls is None
        self._held, self._at_start = split.held, self._at_start and not split.text
        if calls is not None:
            self._calls, self.unwatched_from = calls, self._count
        self._count += 1
