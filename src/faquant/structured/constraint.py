"""What a sampler asks of the constraint that an answer must keep."""

from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Bits: TypeAlias = npt.NDArray[np.uint8]
"""A bit for each token: token n is bit n % 8, from the lowest, of byte n // 8."""


class Constraint(Protocol):
    """What one answer may be, token by token.

    shown: special tokens that are part of the answer's text. unwatched_from: from this token of the answer on, counted
    from 0, stop strings do not end it; None where they always do. is_cut: it ends before the last token,
    because those left do not suffice for what that would begin.
    """

    shown: frozenset[int]
    unwatched_from: int | None
    is_cut: bool

    @property
    def may_end(self) -> bool:
        """Whether what is there is complete."""

    @property
    def must_end(self) -> bool:
        """Whether it is, and nothing can follow; the answer may as well end without an end token."""

    @property
    def is_free(self) -> bool:
        """Whether mostly anything may come next: `mask` is None, and only `admits` knows better."""

    def mask(self) -> Bits | None:
        """The tokens that may come next, a bit each: token n is bit n % 8, from the lowest, of byte n // 8; or all."""

    def admits(self, token: int, left: int) -> bool:
        """Whether `token` may come next, and the answer can then be completed with `left` more after it."""

    def fallback(self) -> int:
        """A token that `admits` accepts, if `left` is one less than it was for the token before."""

    def accept(self, token: int) -> None:
        """Go on with `token`, one that `admits` accepted."""
