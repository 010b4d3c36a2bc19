"""Guesses are what stood behind the longest run of tokens that ends like the text, the last such place first."""

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from faquant.engine import speculation
from faquant.engine.speculation import LONGEST, SHORTEST, PromptLookup


def plain(ids: list[int], count: int) -> list[int]:
    """The same, by looking at every place."""
    for length in range(min(LONGEST, len(ids) - 1), SHORTEST - 1, -1):
        for end in range(len(ids) - 1, length - 1, -1):
            if ids[end - length : end] == ids[-length:]:
                return ids[end : end + count]
    return []


@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.lists(st.integers(1, 5), max_size=20),
    st.integers(1, 6),
    st.sampled_from([3, 8, 1024]),
)
def test_as_a_search_of_the_whole_text(ids: list[int], steps: list[int], count: int, recent: int) -> None:
    lookup, end = PromptLookup(), 0
    with patch.object(speculation, "_RECENT", recent):
        for step in [*steps, len(ids)]:
            end = min(end + step, len(ids))
            assert lookup.guess(ids[:end], count) == plain(ids[:end], count)


def test_nothing_is_guessed_where_nothing_repeats() -> None:
    assert PromptLookup().guess([], 4) == []
    assert PromptLookup().guess([1], 4) == []
    assert PromptLookup().guess([1, 2, 3, 4, 1], 4) == [], "one token alike is chance"
    assert PromptLookup().guess([1, 2, 3, 4, 1, 2], 4) == [3, 4, 1, 2]
