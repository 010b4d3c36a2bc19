"""Repeated names, and repeated items of some arrays, are found, however the text is cut into pieces."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faquant.structured.repetitions import Path, Repetitions, UniqueArrays

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
    assert (read(Repetitions(), written(value), sizes) is None) == is_repeated(value)


def read(state: Repetitions | None, text: str, sizes: list[int]) -> Repetitions | None:
    """The state after the text, read in pieces of these sizes, in turn."""
    data = text.encode()
    place = number = 0
    while place < len(data) and state is not None:
        end = place + sizes[number % len(sizes)]
        state = state.after(data[place:end])
        place, number = end, number + 1
    return state


@pytest.mark.parametrize(
    ("path", "text", "is_repeated"),
    [
        ((), '["a", "b", "ab"]', False),
        ((), '["a", "b", "a"]', True),
        ((), "[1, 2, 1.0]", True),
        ((), "[1, true, null, false]", False),
        ((), '[[1, 1], {"a": [2, 2]}]', False),
        ((), '[{"a": 1, "b": 2}, {"b": 2, "a": 1}]', True),
        ((), '[{"a": 1}, {"a": 2}, "]", ",", "\\""]', False),
        ((), "[]", False),
        ((b"x", None), '{"x": [[1, 1]], "y": [[1, 1]]}', True),
        ((b"x", None), '{"x": [[1, 2], [1, 2]], "y": [[1, 1]]}', False),
        ((None, b"x"), '{"a": {"x": [1, 2]}, "b": {"x": [3, 3]}}', True),
        ((None, b"x"), '{"a": {"y": [1, 1]}, "x": [3, 3]}', False),
    ],
)
@pytest.mark.parametrize("sizes", [[1], [2, 3], [100]])
def test_repeated_items_are_found(path: Path, text: str, is_repeated: bool, sizes: list[int]) -> None:
    state = Repetitions(UniqueArrays((path,)))
    assert (read(state, text, sizes) is None) == is_repeated


def test_paths_from_any_value() -> None:
    state = Repetitions(UniqueArrays(((b"tags",),), is_exact=False))
    assert state.after(b'<tool_call>{"name": "a", "arguments": {"tags": [1, 1') is not None
    assert state.after(b'<tool_call>{"name": "a", "arguments": {"tags": [1, 1]') is None
    assert state.after(b'<tool_call>{"name": "a", "arguments": {"other": [1, 1]}') is not None


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
    state = Repetitions().after(text.encode())
    assert state is not None
    assert state.name == name
