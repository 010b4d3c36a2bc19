"""Draft tokens followed the longest earlier match of the text's end; of equally long matches, the latest."""

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from faquant.engine import speculation
from faquant.engine.speculation import LONGEST, SHORTEST, PromptLookup


def plain(ids: list[int], count: int) -> list[int]:
    """A brute-force search."""
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
            assert lookup.propose(ids[:end], count) == plain(ids[:end], count)


def test_nothing_is_proposed_if_nothing_repeats() -> None:
    assert PromptLookup().propose([], 4) == []
    assert PromptLookup().propose([1], 4) == []
    assert PromptLookup().propose([1, 2, 3, 4, 1], 4) == [], "a match of one token is chance"
    assert PromptLookup().propose([1, 2, 3, 4, 1, 2], 4) == [3, 4, 1, 2]
