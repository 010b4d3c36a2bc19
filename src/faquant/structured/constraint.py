"""The interface between a sampler and the constraint on its answer."""

from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Bits: TypeAlias = npt.NDArray[np.uint8]
"""A bit for each token: token n is bit n % 8, from the lowest, of byte n // 8."""


class Constraint(Protocol):
    """Restricts one answer, token by token."""

    @property
    def shown(self) -> frozenset[int]:
        """Special tokens that are part of the answer's text."""

    @property
    def unwatched_from(self) -> int | None:
        """From this token of the answer on, counted from 0, stop strings are ignored; None: never."""

    @property
    def is_cut(self) -> bool:
        """Whether the answer ends before the last accepted token, which starts a call that could not end within the
        limit."""

    @property
    def is_past_end(self) -> bool:
        """Whether the answer was complete before the last accepted token, which does not belong to it."""

    @property
    def may_end(self) -> bool:
        """Whether the answer is complete."""

    @property
    def must_end(self) -> bool:
        """Whether the answer is complete and nothing can follow, so that it ends without an end token."""

    @property
    def is_free(self) -> bool:
        """Whether almost any token may come next: `mask` returns None, and only `admits` restricts tokens."""

    def mask(self) -> Bits | None:
        """The tokens that may come next, as Bits; None: all tokens."""

    def admits(self, token: int, left: int) -> bool:
        """Whether `token` may come next and the answer can be completed with at most `left` tokens after it."""

    def fallback(self) -> int:
        """A token that `admits` always accepts, provided that `left` decreases by 1 with each token."""

    def accept(self, token: int) -> None:
        """Append `token`, which `admits` must have accepted."""
