"""Answers to schemas with names and items that the grammar does not list: none is repeated, whatever the model prefers.

Such an answer is checked as a text, because a parser would drop repeated names.
"""

import json
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from faquant.errors import UsageError
from faquant.structured.structured_output import StructuredOutput
from faquant.structured.tools.calls import Tool, ToolCalls
from oracles.constrained import LETTERS as LETTERS_OF_JSON
from oracles.constrained import Model, check, least_tokens
from oracles.schemas import ALL_SCHEMAS
from oracles.tool_calls import read

INTEGER, STRING = {"type": "integer", "minimum": -20, "maximum": 20}, {"type": "string", "maxLength": 3}
OPEN: list[Any] = [
    {"type": "object"},
    {"type": "object", "properties": {"a": INTEGER, "ab": STRING}},
    {"type": "object", "properties": {"a": INTEGER}, "additionalProperties": INTEGER, "required": ["a"]},
    {"type": "object", "properties": {"a": INTEGER}, "patternProperties": {"^[ab]+$": {"type": "null"}}},
    {"type": "object", "patternProperties": {"^[0-9]{1,2}$": STRING}, "additionalProperties": False},
    {"type": "object", "minProperties": 1, "additionalProperties": INTEGER},
    {"type": "object", "minProperties": 2, "properties": {"a": INTEGER, "b": INTEGER}, "maxProperties": 4},
    {"type": "object", "propertyNames": {"maxLength": 1}, "additionalProperties": {"type": "boolean"}},
    {"type": "object", "propertyNames": {"pattern": "^[a0]{0,2}$"}, "maxProperties": 3},
    {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": INTEGER}},
    {"type": "array", "items": {"type": "object", "properties": {'"\\': INTEGER}}, "maxItems": 3},
    {"type": "array", "items": STRING, "uniqueItems": True},
    {"type": "array", "items": {"type": "number"}, "uniqueItems": True, "minItems": 1},
    {"type": "array", "items": {"type": "array", "items": INTEGER}, "uniqueItems": True},
    {"type": "array", "items": {"type": "object", "properties": {"a": INTEGER}}, "uniqueItems": True},
    {
        "type": "object",
        "properties": {"tags": {"type": "array", "items": STRING, "uniqueItems": True}, "more": {"type": "array"}},
        "required": ["tags", "more"],
        "additionalProperties": {"type": "array", "items": {"type": "number"}, "uniqueItems": True},
    },
]
LETTERS = ['"', "a", '",', '{"a', "0", "1,", "[,", "\\", 'ab"', ":,", "", "é😀", "n"]


@pytest.mark.parametrize("schema", OPEN, ids=str)
@pytest.mark.parametrize("letters", LETTERS)
def test_nothing_is_repeated(model: Model, schema: Any, letters: str) -> None:
    wanted = StructuredOutput(json_schema=schema, strict=True)
    for seed, spare in ((1, 0), (2, 9), (3, 60)):
        limit = least_tokens(model, wanted) + spare
        sampler = model.sampler(wanted, max_tokens=limit, temperature=seed % 2, seed=seed)
        check(model.answer(sampler, model.fond_of(letters, seed)), schema)


@given(schema=ALL_SCHEMAS, letters=LETTERS_OF_JSON, seed=st.integers(0, 999), spare=st.integers(0, 40))
@settings(max_examples=80, deadline=None)
def test_answers_follow_schemas_of_all_keywords(
    byte_level_model: Model, schema: Any, letters: str, seed: int, spare: int
) -> None:
    try:
        wanted = StructuredOutput(json_schema=schema)
        limit = least_tokens(byte_level_model, wanted) + spare
    except UsageError as error:
        assume("admits no value" not in str(error))
        raise
    sampler = byte_level_model.sampler(wanted, max_tokens=max(1, limit), seed=seed)
    answer = byte_level_model.answer(sampler, byte_level_model.fond_of(letters, seed))
    if wanted.unenforced:
        json.loads(answer)
    else:
        check(answer, schema)
        assert wanted.problem(answer) is None


@pytest.mark.parametrize("format", ["hermes", "llama3_json", "mistral", "pythonic"])
@pytest.mark.parametrize("letters", LETTERS)
def test_nothing_is_repeated_in_arguments(byte_level_model: Model, format: str, letters: str) -> None:
    array = {"type": "array", "items": INTEGER, "uniqueItems": True}
    plain = {"type": "object", "properties": {"tags": array, "b": {"type": "object"}}, "required": ["tags"]}
    tools = {"tag": {**plain, "additionalProperties": False} if format == "pythonic" else plain}
    calls = ToolCalls(tuple(Tool(*pair, strict=True) for pair in tools.items()), format, forced=True)
    wanted = StructuredOutput(tool_calls=calls)
    for seed in range(3):
        limit = least_tokens(byte_level_model, wanted) + 80 * seed
        sampler = byte_level_model.sampler(wanted, max_tokens=limit, seed=seed)
        text = byte_level_model.answer(sampler, byte_level_model.fond_of(letters, seed))
        _, found, complete = read(calls, text)
        assert complete
        for name, arguments in found:
            check(arguments, tools[name])
