"""Pages are allocated, found in the prefix cache, and reused in the right order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from faquant.engine.page_pool import PagePool, page_digest


def test_fresh_pages_are_contiguous() -> None:
    pool = PagePool(5)
    assert pool.take(3) == [0, 1, 2]
    with pytest.raises(ValueError, match="3 pages were requested, but only 2 are available"):
        pool.take(3)
    assert pool.take(2) == [3, 4]


def test_a_page_is_found_until_it_is_needed() -> None:
    pool = PagePool(3)
    first, second = pool.take(2)
    pool.remember(first, b"1")
    pool.remember(second, b"2")
    pool.free([first, second])
    assert (pool.available, pool.cached) == (3, 2)
    assert pool.find([b"1", b"2", b"3"]) == [first, second]
    pool.free([first, second])
    assert pool.take(2) == [2, second], "an empty page first, then the end of the freed sequence"
    assert pool.find([b"1", b"2"]) == [first]


def test_the_page_freed_first_is_reused_first() -> None:
    pool = PagePool(3)
    pages = pool.take(3)
    for page in pages:
        pool.remember(page, bytes([page]))
    for page in (1, 2, 0):
        pool.free([page])
    pool.free(pool.find([bytes([1])]))
    assert pool.take(3) == [2, 0, 1]


def test_of_two_pages_with_the_same_digest_the_first_stays_in_the_cache() -> None:
    pool = PagePool(2)
    first, second = pool.take(2)
    pool.remember(first, b"same")
    pool.remember(second, b"same")
    pool.free([first, second])
    assert pool.find([b"same"]) == [first]
    assert pool.cached == 0
    pool.check_integrity([[first]])


def test_a_free_page_cannot_be_freed() -> None:
    pool = PagePool(1)
    pages = pool.take(1)
    pool.free(pages)
    with pytest.raises(ValueError, match="already free"):
        pool.free(pages)


def test_forgetting_keeps_what_is_held() -> None:
    pool = PagePool(3)
    held, idle = pool.take(2)
    pool.remember(held, b"held")
    pool.remember(idle, b"idle")
    pool.free([idle])
    pool.forget_all()
    assert pool.find([b"held"]) == pool.find([b"idle"]) == []
    pool.check_integrity([[held]])


@given(st.lists(st.integers(0, 2**31), max_size=4), st.lists(st.integers(0, 2**31), max_size=4))
def test_digests_depend_on_the_tokens_and_the_previous_digest(a: list[int], b: list[int]) -> None:
    assert (page_digest(b"", a) == page_digest(b"", b)) == (a == b)
    assert page_digest(page_digest(b"", a), b) != page_digest(b"", b)


def test_an_inconsistent_pool_is_detected() -> None:
    pool = PagePool(2)
    pages = pool.take(1)
    with pytest.raises(RuntimeError, match="reference counts of the pages"):
        pool.check_integrity([])
    pool.remember(pages[0], b"x")
    pool._digests[pages[0]] = b"y"
    with pytest.raises(RuntimeError, match="prefix cache does not match"):
        pool.check_integrity([pages])
    pool = PagePool(2)
    pool._empty.pop()
    with pytest.raises(RuntimeError, match="free list does not match"):
        pool.check_integrity([])


class Pool(RuleBasedStateMachine):
    """Allocates and frees random sequences of digests, and compares with a dictionary of the pages' contents."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(6)
        self.held: list[list[int]] = []
        self.contents: dict[int, bytes] = {}

    @rule(words=st.lists(st.sampled_from("ab"), min_size=1, max_size=4))
    def begin(self, words: list[str]) -> None:
        digests = [b"".join(word.encode() for word in words[: end + 1]) for end in range(len(words))]
        pages = self.pool.find(digests)
        for page, digest in zip(pages, digests, strict=False):
            assert self.contents[page] == digest
        missing = digests[len(pages) :]
        if len(missing) > self.pool.available:
            self.pool.free(pages)
            return
        fresh = self.pool.take(len(missing))
        for page, digest in zip(fresh, missing, strict=True):
            assert all(page not in other for other in self.held), "another sequence reads this page"
            self.contents[page] = digest
            self.pool.remember(page, digest)
        self.held.append(pages + fresh)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.pool.free(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule()
    def forget(self) -> None:
        self.pool.forget_all()

    @invariant()
    def fits(self) -> None:
        self.pool.check_integrity(self.held)


TestPool = Pool.TestCase
