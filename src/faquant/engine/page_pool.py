"""Which cache pages are free, who holds the others, and what stands in them.

A page that is full is known by a digest of its tokens and of all tokens before them, so a sequence that begins alike
finds it (prefix cache). Pages that nobody holds keep what they know until they are needed for something else; the one
that was given back longest ago goes first.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np


def page_digest(before: bytes, tokens: Sequence[int]) -> bytes:
    """Of a full page's tokens, with `before` the digest of the page before it. 256 bits: who chooses the prompts must
    not find two that meet."""
    return blake2b(before + np.array(tokens, dtype=np.int64).tobytes(), digest_size=32).digest()


class PagePool:
    """Pages 0 … num_pages - 1, of which nothing but the numbers is known here."""

    def __init__(self, num_pages: int) -> None:
        self._holders = [0] * num_pages
        self._digests: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        # Nobody holds these. Taken from the end: pages in ascending order, so that fresh sequences lie in one piece.
        self._empty = list(range(num_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # with a digest, the one given back longest ago first

    @property
    def num_pages(self) -> int:
        return len(self._holders)

    @property
    def available(self) -> int:
        """Pages that `take` could give."""
        return len(self._empty) + len(self._idle)

    @property
    def cached(self) -> int:
        """Pages that nobody holds and that a sequence may find."""
        return len(self._idle)

    def take(self, count: int) -> list[int]:
        """Hold `count` pages, whose contents are forgotten. Raises: ValueError: so many are not available."""
        if count > self.available:
            raise ValueError(f"{count} pages were wanted, and {self.available} are available.")
        pages = []
        for _ in range(count):
            page = self._empty.pop() if self._empty else self._idle.popitem(last=False)[0]
            self._forget(page)
            self._holders[page] = 1
            pages.append(page)
        return pages

    def find(self, digests: Iterable[bytes]) -> list[int]:
        """Hold the pages with these digests, up to the first that is not there."""
        pages = []
        for digest in digests:
            page = self._page_of.get(digest)
            if page is None:
                break
            self._idle.pop(page, None)
            self._holders[page] += 1
            pages.append(page)
        return pages

    def give_back(self, pages: Sequence[int]) -> None:
        """Hold a sequence's pages no longer. Raises: ValueError: one of them is not held."""
        for page in reversed(pages):  # the sequence's end is the first to be used for something else
            if self._holders[page] == 0:
                raise ValueError(f"Page {page} is not held by anybody.")
            self._holders[page] -= 1
            if self._holders[page] == 0:
                if self._digests[page] is None:
                    self._empty.append(page)
                else:
                    self._idle[page] = None

    def remember(self, page: int, digest: bytes) -> None:
        """A held page is full now. Where another page holds the same, sequences go on finding that one."""
        if digest not in self._page_of:
            self._forget(page)
            self._page_of[digest], self._digests[page] = page, digest

    def forget_all(self) -> None:
        """No page is to be found any more."""
        for page in list(self._page_of.values()):
            self._forget(page)
        self._empty += self._idle
        self._idle.clear()

    def _forget(self, page: int) -> None:
        digest = self._digests[page]
        if digest is not None:
            del self._page_of[digest]
            self._digests[page] = None

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Compare with the pages that all sequences say they hold. Raises: RuntimeError: something does not fit."""
        counts = [0] * self.num_pages
        for pages in held:
            for page in pages:
                counts[page] += 1
        if counts != self._holders:
            wrong = [page for page, count in enumerate(counts) if count != self._holders[page]]
            raise RuntimeError(f"Pages {wrong[:8]} are not held by as many sequences as the pool says.")
        unused = [*self._empty, *self._idle]
        if sorted(unused) != [page for page, count in enumerate(counts) if count == 0]:
            raise RuntimeError("The pages that nobody holds are not those that are free.")
        known = {digest: page for page, digest in enumerate(self._digests) if digest is not None}
        if known != self._page_of or any(self._digests[page] is not None for page in self._empty):
            raise RuntimeError("What the pages hold is not what the pool would find.")
        if any(self._digests[page] is None for page in self._idle):
            raise RuntimeError("A page is kept that nobody could find.")
