"""Examples of regular expressions, judged by Python's re."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faquant.structured.regex_example import example

ATOMS = st.sampled_from(
    ["a", "é", r"\.", r"\d", r"\w", r"\s", ".", "[a-f]", "[^a0]", r"[^\w]", r"[\]x]", "[]y]", r"\x41", r"\u00e9"]
)
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,3}", "{2,}", "*?", "+?"])).map(
            lambda two: f"(?:{two[0]}){two[1]}"
        ),
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda some: f"({'|'.join(some)})"),
    ),
    max_leaves=8,
)


@given(PATTERNS)
def test_an_example_matches(pattern: str) -> None:
    text = example(pattern)
    assert text is not None
    assert re.search(pattern, text), (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"^[^@]+@[^@]+\.[a-z]{2,}$", "a@a.aa"),
        ("(ab)*c[0-9]{3}", "c000"),
        ("(?P<year>[12][0-9]{3})-(?:0[1-9]|1[0-2])", "1000-01"),
        ("yes|no", "no"),
        ("x{3}|", ""),
        (r"\p{Lu}+", "a"),
    ],
)
def test_some_examples(pattern: str, text: str) -> None:
    assert example(pattern) == text


@pytest.mark.parametrize(
    "pattern", ["(", "a)", "[a", "(" * 5000, "a{9999}", "[[:alpha:]]", "[a&&b]", r"\u{D800}", r"\x{99999999}", "\\"]
)
def test_unsupported_patterns_return_none(pattern: str) -> None:
    assert example(pattern) is None


@given(st.text("ab()[]{}|\\^$.*+?-,019:=!<>&pudx", max_size=12))
def test_nothing_raises(pattern: str) -> None:
    example(pattern)
