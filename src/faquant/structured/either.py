"""An answer that follows one of two grammars: its first tokens decide which."""

from collections.abc import Sequence
from functools import reduce
from operator import or_

from .constraint import Bits, Constraint


class EitherConstraint:
    """The `Constraint` of an answer that may consist of tool calls, or else has another form.

    Args:
        answer, calls: the constraints of the two, before their first token.
    """

    def __init__(self, answer: Constraint, calls: Constraint) -> None:
        self.shown = answer.shown | calls.shown
        self._possible: Sequence[Constraint] = (answer, calls)
        self._admitted: Sequence[Constraint] = ()

    @property
    def unwatched_from(self) -> int | None:
        """Stop strings end answers, but not calls."""
        return self._possible[0].unwatched_from

    @property
    def is_cut(self) -> bool:
        return False

    @property
    def is_past_end(self) -> bool:
        return all(one.is_past_end for one in self._possible)

    @property
    def is_free(self) -> bool:
        return any(one.is_free for one in self._possible)

    @property
    def may_end(self) -> bool:
        return any(one.may_end for one in self._possible)

    @property
    def must_end(self) -> bool:
        return all(one.must_end for one in self._possible)

    def mask(self) -> Bits | None:
        masks = [one.mask() for one in self._possible]
        bits = [mask for mask in masks if mask is not None]
        return reduce(or_, bits) if len(bits) == len(masks) else None

    def admits(self, token: int, left: int) -> bool:
        self._admitted = [one for one in self._possible if one.admits(token, left)]
        return bool(self._admitted)

    def fallback(self) -> int:
        return self._possible[0].fallback()

    def accept(self, token: int) -> None:
        for one in self._admitted:
            one.accept(token)
        # A token that ends one of them may continue the other.
        self._possible = [one for one in self._admitted if not one.is_past_end] or self._admitted
