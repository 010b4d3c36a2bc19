"""Names that occur twice in an object are found, however the text is cut into pieces."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faquant.structured.names import Names

TEXTS = st.text('ab"\\{}[],:\né😀', max_size=4)
VALUES = st.recursive(
    st.one_of(st.none(), st.integers(-9, 9), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(st.tuples(TEXTS, inner), max_size=4).map(tuple)),
    max_leaves=8,
)


def written(value: Any) -> str:
    """JSON, with tuples of pairs as objects, whose names may be repeated."""
    if isinstance(value, tuple):
        return "{" + ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {written(part)}" for name, part in value) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    return json.dumps(value, ensure_ascii=False)


def is_repeated(value: Any) -> bool:
    if isinstance(value, tuple):
        names = [name for name, _ in value]
        return len(set(names)) < len(names) or any(is_repeated(part) for _, part in value)
    return isinstance(value, list) and any(map(is_repeated, value))


@given(value=VALUES, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=9))
@settings(max_examples=300, deadline=None)
def test_repeated_names_are_found(value: Any, sizes: list[int]) -> None:
    text = written(value).encode()
    names: Names | None = Names()
    place = number = 0
    while place < len(text) and names is not None:
        end = place + sizes[number % len(sizes)]
        names = names.after(text[place:end])
        place, number = end, number + 1
    assert (names is None) == is_repeated(value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"a', b"a"),
        ('{"a": "b', None),
        ('{"a": 1, "b\\', b"b\\"),
        ('[{"a": 1}, {"a', b"a"),
        ('{"a": ["b', None),
        ('<tool_call>{"a": {"b": 1}, "c', b"c"),
        ('f(x={"a": 1}, y="b', None),
    ],
)
def test_the_name_at_the_end(text: str, name: bytes | None) -> None:
    names = Names().after(text.encode())
    assert names is not None
    assert names.name == name
