"""The pool of cache pages: reference counts, free pages and the prefix cache.

A full page is identified by a digest of its tokens and of all tokens before them, so a sequence with the same prefix
can reuse it (prefix cache). A page without holders keeps its contents until it is needed; the page that was freed
first is reused first.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np


def page_digest(before: bytes, tokens: Sequence[int]) -> bytes:
    """The digest of a full page: of its tokens and of `before`, the previous page's digest.

    It has 256 bits, so that a client cannot construct prompts with colliding digests.
    """
    return blake2b(before + np.array(tokens, dtype=np.int64).tobytes(), digest_size=32).digest()


class PagePool:
    """Manages the pages 0 … num_pages - 1 by number; the contents are elsewhere."""

    def __init__(self, num_pages: int) -> None:
        self._holders = [0] * num_pages
        self._digests: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        # Free pages without a digest. `take` pops from the end, in ascending order, so that a sequence is contiguous.
        self._empty = list(range(num_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # free pages with a digest, the first one freed first

    @property
    def num_pages(self) -> int:
        return len(self._holders)

    @property
    def available(self) -> int:
        """The number of pages that `take` can return."""
        return len(self._empty) + len(self._idle)

    @property
    def cached(self) -> int:
        """The number of free pages in the prefix cache."""
        return len(self._idle)

    def take(self, count: int) -> list[int]:
        """Allocate `count` pages and forget their contents. Raises: ValueError: fewer are available."""
        if count > self.available:
            raise ValueError(f"{count} pages were requested, but only {self.available} are available.")
        pages = []
        for _ in range(count):
            page = self._empty.pop() if self._empty else self._idle.popitem(last=False)[0]
            self._forget(page)
            self._holders[page] = 1
            pages.append(page)
        return pages

    def find(self, digests: Iterable[bytes]) -> list[int]:
        """Acquire the pages with these digests, up to the first digest that is not cached."""
        pages = []
        for digest in digests:
            page = self._page_of.get(digest)
            if page is None:
                break
            self._idle.pop(page, None)
            self._holders[page] += 1
            pages.append(page)
        return pages

    def free(self, pages: Sequence[int]) -> None:
        """Release a sequence's pages. Raises: ValueError: a page has no holder."""
        for page in reversed(pages):  # the end of the sequence is reused first
            if self._holders[page] == 0:
                raise ValueError(f"Page {page} is already free.")
            self._holders[page] -= 1
            if self._holders[page] == 0:
                if self._digests[page] is None:
                    self._empty.append(page)
                else:
                    self._idle[page] = None

    def remember(self, page: int, digest: bytes) -> None:
        """Add a full page to the prefix cache, unless another page with the same digest is in it."""
        if digest not in self._page_of:
            self._forget(page)
            self._page_of[digest], self._digests[page] = page, digest

    def forget_all(self) -> None:
        """Empty the prefix cache."""
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
        """Compare with the pages that the sequences hold. Raises: RuntimeError: they do not agree."""
        counts = [0] * self.num_pages
        for pages in held:
            for page in pages:
                counts[page] += 1
        if counts != self._holders:
            wrong = [page for page, count in enumerate(counts) if count != self._holders[page]]
            raise RuntimeError(f"The reference counts of the pages {wrong[:8]} are wrong.")
        unused = [*self._empty, *self._idle]
        if sorted(unused) != [page for page, count in enumerate(counts) if count == 0]:
            raise RuntimeError("The free list does not match the pages without holders.")
        known = {digest: page for page, digest in enumerate(self._digests) if digest is not None}
        if known != self._page_of or any(self._digests[page] is not None for page in self._empty):
            raise RuntimeError("The prefix cache does not match the pages' digests.")
        if any(self._digests[page] is None for page in self._idle):
            raise RuntimeError("A cached page has no digest.")
