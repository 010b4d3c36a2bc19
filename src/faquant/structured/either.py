"""An answer that follows one of two grammars: its first tokens decide which."""

from collections.abc import Sequence
from functools import reduce
from operator import or_

from .constraint import Bits, Constraint


class EitherConstraint:
    """The `Constraint` of an answer that may call tools, or else has a required form.

    Args:
        answer, calls: the constraints of the two, before their first token; None: too long for the token limit. At
            least one is given.
        shown: special tokens that are part of the answer's text.
    """

    def __init__(self, answer: Constraint | None, calls: Constraint | None, shown: frozenset[int]) -> None:
        self.shown = shown
        self.is_cut = False
        self._calls = calls
        self._possible: Sequence[Constraint] = [one for one in (answer, calls) if one is not None]
        self._admitted: Sequence[Constraint] = []
        self.unwatched_from: int | None = None
        self._watch()

    @property
    def is_free(self) -> bool:
        return False

    @property
    def may_end(self) -> bool:
        return any(one.may_end for one in self._possible)

    @property
    def must_end(self) -> bool:
        return all(one.must_end for one in self._possible)

    def mask(self) -> Bits:
        masks = [bits for one in self._possible if (bits := one.mask()) is not None]
        return reduce(or_, masks)

    def admits(self, token: int, left: int) -> bool:
        self._admitted = [one for one in self._possible if one.admits(token, left)]
        return bool(self._admitted)

    def fallback(self) -> int:
        return self._possible[0].fallback()

    def accept(self, token: int) -> None:
        for one in self._admitted:
            one.accept(token)
        self._possible = self._admitted
        self._watch()

    def _watch(self) -> None:
        """Let stop strings end answers, but not calls."""
        self.unwatched_from = 0 if list(self._possible) == [self._calls] else None
