"""Bounds far beyond any answer: compiling takes no time or memory for them, and the bounds of counted members."""

import time
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest

from faquant.errors import UsageError
from faquant.structured.json_schema import compile_schema
from oracles.schemas import Recognizer, is_valid

KEYWORDS = {
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
    "object": ("minProperties", "maxProperties"),
}


@pytest.mark.parametrize("bound", [10**9, 10**30])
@pytest.mark.parametrize(
    "schema",
    [
        *({"type": kind, name: 0} for kind, names in KEYWORDS.items() for name in names),
        {"type": "string", "minLength": 0, "maxLength": 0},
        {"type": "array", "contains": {"const": 1}, "minContains": 0},
        {"type": "array", "contains": {"const": 1}, "minContains": 0, "maxItems": 0},
        {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "maxProperties": 0},
        {"type": "object", "propertyNames": {"minLength": 0}, "required": ["a"]},
    ],
)
def test_a_huge_bound_takes_no_memory(schema: Any, bound: int) -> None:
    def with_bound(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: with_bound(inner) for key, inner in value.items()}
        return bound if value == 0 else value

    tracemalloc.start()
    try:
        compile_schema(with_bound(schema))
    except UsageError:
        assert "required" in schema, "the name a is too short"
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 23


@pytest.mark.parametrize("least", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("most", [0, 1, 2, 3, 4, 10, 10**6])
@pytest.mark.parametrize("is_closed", [False, True])
def test_members_are_counted(least: int, most: int, is_closed: bool) -> None:
    schema: Any = {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "required": ["b"]}
    schema |= {"minProperties": least, "maxProperties": most, "additionalProperties": not is_closed}
    values: list[Any] = [
        dict.fromkeys(names, 1) for names in ("", "b", "ab", "bc", "abc", "ac", "bx", "abx", "abcx", "abcxy")
    ]
    try:
        recognizer = Recognizer(compile_schema(schema, strict=True))
    except UsageError:
        assert least > most or not most or (is_closed and least > 3)
        return
    assert [value for value in values if value in recognizer] == [value for value in values if is_valid(schema, value)]


def seconds(schema: Any) -> float:
    begin = time.process_time()
    with suppress(UsageError):
        compile_schema(schema)
    return time.process_time() - begin


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param(
            {
                "type": "object",
                "properties": {f"n{number}": {} for number in range(12)},
                "allOf": [{"not": {"additionalProperties": {"const": f"x{number}"}}} for number in range(8)],
            },
            id="members that are wanted",
        ),
        pytest.param(
            {
                "properties": {f"n{number:04}": {"type": "string"} for number in range(3000)},
                "required": ["n0002", "n0001"],
                "type": "object",
            },
            id="sorted names",
        ),
        pytest.param(
            {
                "type": "object",
                "allOf": [{"properties": {f"{letter}{number}": {} for number in range(1500)}} for letter in ("a", "b")],
            },
            id="merged names",
        ),
        pytest.param({"type": "string", "pattern": "^(a|b)*$", "minLength": 60000}, id="a long string with a pattern"),
    ],
)
def test_large_schemas_are_compiled_soon(schema: Any) -> None:
    assert seconds(schema) < 3
