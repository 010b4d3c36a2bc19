"""Stop strings against str.find, however the text is cut."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from faquant.errors import UsageError
from faquant.text.stopping import StopChecker

STOPS = st.lists(st.text("ab", min_size=1, max_size=6), max_size=4)


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The occurrence that ends first, and of those the longest."""
    found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    end, length, stop = min(found)
    return text[: end + length], stop


@given(pieces=st.lists(st.text("abc", max_size=5), max_size=12), stops=STOPS)
@example(pieces=["aab", "aabaaab"], stops=["aabaaa"])
@example(pieces=["abc"], stops=["abc", "bc", "c"])
@settings(max_examples=1000, deadline=None)
def test_equals_a_search_of_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    checker = StopChecker(stops)
    shown = "".join(checker.push(piece) for piece in pieces) + checker.flush()
    assert (shown, checker.matched) == expected("".join(pieces), stops)
    assert checker.stopped == (checker.matched is not None)


@given(text=st.text("abc", max_size=20), stops=STOPS)
@settings(max_examples=500, deadline=None)
def test_holds_back_no_more_than_could_become_a_stop(text: str, stops: list[str]) -> None:
    checker = StopChecker(stops)
    shown = ""
    for count, character in enumerate(text, start=1):
        shown += checker.push(character)
        if checker.stopped:
            return
        held = text[len(shown) : count]
        assert shown + held == text[:count]
        assert not held or any(stop.startswith(held) for stop in stops)


@given(text=st.text("ab", max_size=30), stops=STOPS)
@settings(max_examples=500, deadline=None)
def test_every_cut_returns_the_same(text: str, stops: list[str]) -> None:
    for cut in range(len(text) + 1):
        checker = StopChecker(stops)
        assert checker.push(text[:cut]) + checker.push(text[cut:]) + checker.flush() == expected(text, stops)[0]


def test_nothing_follows_a_stop() -> None:
    checker = StopChecker(["END"])
    assert checker.push("on E") == "on "
    assert checker.push("ND more") == ""
    assert checker.stopped
    assert checker.push("and more") == ""
    assert checker.flush() == ""
    assert checker.matched == "END"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be empty"):
        StopChecker(["a", ""])
