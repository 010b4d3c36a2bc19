"""Structured output that is refused: forms that would not be enforced, limits too small, unsuitable models."""

from pathlib import Path
from typing import Any

import pytest

from faquant.errors import UnsupportedError, UsageError
from faquant.sampling.sampler import Sampler, SamplingParams
from faquant.structured.grammar import Grammars, StructuredOutput
from faquant.text.tokenizer import Tokenizer
from oracles.constrained import TOOL, Model, least_tokens
from oracles.tokenizer_kinds import BACKENDS, write_model


def test_a_limit_too_small_for_any_answer_is_refused(model: Model) -> None:
    wanted = StructuredOutput(json_schema=TOOL)
    shortest = least_tokens(model, wanted)
    with pytest.raises(UsageError, match=rf"max_tokens \({shortest - 1}\) is too small .* {shortest} tokens"):
        model.sampler(wanted, max_tokens=shortest - 1)
    model.sampler(wanted, max_tokens=shortest)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"not": {"type": "string"}}, "'not' at its top"),
        ({"properties": {"a": {"if": {}}}}, "'if' at /properties/a"),
        ({"items": {"anyOf": [{"minimun": 3}]}}, "'minimun' at /items/anyOf/0"),
        ({"$defs": {"x": {"uniqueItems": True}}}, "'uniqueItems' at /\\$defs/x"),
        ({"x-guidance": {"lenient": True}}, "'x-guidance'"),
        ({"type": "object", "minProperties": 2}, "minProperties at its top"),
        ([], "must be a JSON object"),
        ("{", "is not valid JSON"),
        ("", "non-empty"),
        (5, "must be a JSON object"),
        ({"const": float("nan")}, "is not valid JSON"),
        ({"const": {1}}, "is not valid JSON"),
        ({"const": "\ud800"}, "valid Unicode"),
        ({"description": "x" * 300_000}, "at most 262144 bytes"),
        ("[" * 100_000 + "]" * 100_000, "is not valid JSON|nested"),
    ],
)
def test_schemas_that_would_not_be_enforced_are_refused(schema: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StructuredOutput(json_schema=schema)


def pattern(number: int) -> dict[str, Any]:
    return {"type": "string", "pattern": f"(.*{number}){{{3 + number % 5}}}"}


def chain(count: int) -> dict[str, Any]:
    schema = pattern(0)
    for number in range(1, count):
        schema = {**pattern(number), "anyOf": [schema]}
    return schema


MANY = [pattern(number) for number in range(16)]
DEFINITIONS = {"$defs": {f"d{number}": pattern(number) for number in range(16)}}


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": MANY},
        {"allOf": [{"properties": {"a": each}} for each in MANY]},
        {"properties": {"a": chain(16)}},
        {"allOf": [{"$ref": f"#/$defs/d{number}"} for number in range(16)], **DEFINITIONS},
        {"$ref": "#/$defs/d0", "$defs": {f"d{n}": {**pattern(n), "$ref": f"#/$defs/d{n + 1}"} for n in range(16)}},
    ],
)
def test_combined_patterns_are_refused_before_they_use_all_memory(schema: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="more than 4 patterns or formats"):
        StructuredOutput(json_schema=schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {f"p{number}": each for number, each in enumerate(MANY)}, "anyOf": [{"required": ["p1"]}]},
        {"anyOf": MANY},
        {"properties": {f"p{n}": {"allOf": [{"$ref": f"#/$defs/d{n}"}]} for n in range(16)}, **DEFINITIONS},
    ],
)
def test_separate_patterns_are_accepted(schema: dict[str, Any], model: Model) -> None:
    model.grammars.constraints(StructuredOutput(json_schema=schema), 200, model.tokenizer.eos_token_ids)


def test_a_schema_nested_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(70):
        schema = {"items": schema}
    with pytest.raises(UsageError, match="nested more than 64"):
        StructuredOutput(json_schema=schema)


MANY_OPTIONAL = {
    "type": "object",
    "properties": {f"p{number}": {"type": "null"} for number in range(900)},
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (StructuredOutput(json_schema={"type": "objectx"}), "Invalid type: objectx"),
        (StructuredOutput(json_schema={"type": "string", "format": "none"}), "Unknown format"),
        (StructuredOutput(json_schema={"type": "array", "minItems": 3, "maxItems": 2}), "Unsatisfiable"),
        (StructuredOutput(json_schema={"$ref": "http://x/y"}), "not present"),
        (StructuredOutput(json_schema={"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
        (StructuredOutput(regex="(a"), "unclosed group"),
        (StructuredOutput(regex="(?=a)b"), "look-around"),
        (StructuredOutput(grammar="begin: /a/"), "cannot be enforced"),
        (StructuredOutput(grammar="start: start"), "."),
        (StructuredOutput(json_schema=MANY_OPTIONAL), "structure is too large"),
    ],
)
def test_what_llguidance_refuses_is_a_usage_error(
    byte_level_model: Model, wanted: StructuredOutput, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        byte_level_model.grammars.constraints(wanted, 100, [2])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"json_object": False},
        {"json_object": True, "regex": "a"},
        {"json_object": 1},
        {"regex": ""},
        {"regex": 5},
        {"choice": ()},
        {"choice": "ab"},
        {"choice": ("a", "")},
        {"choice": ("a", 5)},
        {"choice": ("a",) * 1025},
        {"grammar": "\ud800"},
    ],
)
def test_exactly_one_field_is_accepted(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        StructuredOutput(**fields)


def test_forms_are_values() -> None:
    schema = {"type": "object"}
    wanted = StructuredOutput(json_schema=schema)
    schema["type"] = "string"
    assert wanted == StructuredOutput(json_schema='{"type": "object"}')
    assert hash(wanted) == hash(StructuredOutput(json_schema='{"type": "object"}'))
    assert StructuredOutput(choice=["a"]) == StructuredOutput(choice=("a",))  # type: ignore[arg-type]


def test_end_tokens_are_required_and_must_be_special(byte_level_model: Model) -> None:
    model, wanted = byte_level_model, StructuredOutput(choice=("a",))
    with pytest.raises(UsageError, match="needs a model with an end token"):
        model.grammars.constraints(wanted, 9, [])
    with pytest.raises(UsageError, match="must be special tokens"):
        model.grammars.constraints(wanted, 9, [model.texts.index("a")])
    with pytest.raises(UsageError, match="was given no constraint"):
        Sampler(SamplingParams(structured_output=wanted))
    with pytest.raises(UsageError, match="ignore_eos excludes"):
        SamplingParams(structured_output=wanted, ignore_eos=True)
    with pytest.raises(UsageError, match="structured_output must be"):
        SamplingParams(structured_output={"regex": "a"})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["metaspace", "no_decoder", "ctc"])
def test_tokenizers_with_unknown_bytes_are_refused(name: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(write_model(tmp_path / name, BACKENDS[name]()))
    with pytest.raises(UnsupportedError, match="Structured output is not possible"):
        Grammars(tokenizer, tokenizer.vocab_size)
