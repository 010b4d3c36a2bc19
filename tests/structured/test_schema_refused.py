"""Schemas that are refused, because they are none, or because they are strict and the grammar cannot enforce them."""

import re
from typing import Any

import pytest

from faquant.errors import UsageError
from faquant.structured.json_schema import compile_schema
from faquant.structured.structured_output import StructuredOutput
from oracles.constrained import Model


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ([], "must be a JSON object"),
        ("{", "is not valid JSON"),
        ("", "non-empty"),
        (5, "must be a JSON object"),
        ({"const": float("nan")}, "is not valid JSON"),
        ({"const": {1}}, "is not valid JSON"),
        ('{"maximum": 1e999}', "is not valid JSON: 1e999"),
        ('{"enum": [NaN]}', "is not valid JSON: NaN"),
        ({"const": "\ud800"}, "valid Unicode"),
        ('{"const": "\\ud800"}', "valid Unicode"),
        ({"description": "x" * 300_000}, "at most 262144 bytes"),
        ("[" * 100_000 + "]" * 100_000, "is not valid JSON|nested"),
        ({"type": "objectx"}, "'type' at its top, which must be one or more of null, .*: objectx"),
        (
            {"properties": {"a": {"minLength": -1}}},
            "'minLength' at /properties/a, which must be a non-negative integer",
        ),
        ({"items": {"required": True}}, "'required' at /items, which must be a list of names: True"),
        ({"anyOf": []}, "'anyOf' at its top, which must be a list of one or more schemas"),
        ({"properties": {"a": "string"}}, "'properties' at its top, which must be an object of schemas"),
        ({"multipleOf": 0}, "greater than 0"),
        ({"maximum": "5"}, "'maximum' at its top, which must be a number"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "admits no value"),
        ({"enum": []}, "admits no value"),
        ({"type": "string", "const": 5}, "admits no value"),
        ({"properties": {"a": False}, "required": ["a"], "type": "object"}, "admits no value"),
        ({"type": "object", "minProperties": 2, "maxProperties": 1}, "admits no value"),
        ({"$ref": "http://x/y"}, "refers to 'http://x/y' at its top, .* copy it into"),
        ({"items": {"$ref": "#/$defs/none"}}, "refers to '#/\\$defs/none' at /items"),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_what_is_no_schema_is_refused(schema: Any, message: str, strict: bool) -> None:
    with pytest.raises(UsageError, match=message):
        compile_schema(schema, strict=strict)


UNENFORCED = [
    (
        {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "minItems": 2},
        "'uniqueItems' with 'minItems' of items that are not from a short list of values",
    ),
    ({"type": "object", "minProperties": 2}, "'minProperties' \\(2\\) with names that are not listed"),
    ({"properties": {"a": {"type": "string", "pattern": "(a)\\1"}}}, "'pattern' at /properties/a"),
    ({"items": {"patternProperties": {"(?<!a)b": {"type": "null"}}}}, "'patternProperties' at /items"),
    (
        {"$defs": {"a": {"multipleOf": 3}}, "items": {"not": {"$ref": "#/$defs/a"}}},
        "the opposite of the schema at /\\$defs/a",
    ),
]


@pytest.mark.parametrize(("schema", "cause"), UNENFORCED)
def test_what_cannot_be_enforced_is_refused_if_strict(schema: Any, cause: str) -> None:
    with pytest.raises(UsageError, match=f"{cause}, which cannot be enforced"):
        compile_schema(schema, strict=True)
    (unenforced,) = compile_schema(schema).unenforced
    assert re.fullmatch(cause, unenforced)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"items": {"anyOf": [{"minimun": 3}]}}, "'minimun' at /items/anyOf/0, .* write 'minimum'"),
        ({"additonalProperties": False}, "write 'additionalProperties'"),
        ({"properties": {"a": {"maxlength": 3}}}, "'maxlength' at /properties/a, .* write 'maxLength'"),
        ({"divisibleBy": 3}, "'divisibleBy' at its top, .* remove it"),
    ],
)
def test_what_is_probably_misspelled_is_refused_if_strict(schema: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compile_schema(schema, strict=True)
    assert not compile_schema(schema).unenforced


def test_annotations_are_accepted() -> None:
    annotations = {
        "$id": "http://x/y",
        "id": "y",
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": "c",
        "self": {"vendor": "v"},
        "links": [],
        "readonly": True,
        "readOnly": True,
        "nullable": True,
        "enumNames": ["a"],
        "markdownDescription": "m",
        "units": "cm",
        "name": "n",
        "version": "1",
        "title": "t",
        "description": "d",
        "format": "color",
        "x-order": 1,
        "x-guidance": {"lenient": True},
        "_comment": "",
        "example": 1,
        "default": 1,
        "deprecated": True,
        "writeOnly": True,
        "examples": [1],
        "discriminator": {"propertyName": "p"},
        "contentMediaType": "a/b",
        "contentEncoding": "base64",
        "optional": True,
        "propertyOrder": 1,
    }
    plain = {"type": "string", "maxLength": 3}
    compiled = compile_schema({"properties": {"a": {**annotations, **plain}}}, strict=True)
    assert compiled.grammar == compile_schema({"properties": {"a": plain}}).grammar
    assert not compiled.unenforced


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
        {
            "$ref": "#/$defs/d0",
            "$defs": {f"d{n}": {**pattern(n), "$ref": f"#/$defs/d{min(n + 1, 15)}"} for n in range(16)},
        },
    ],
)
def test_combined_patterns_are_refused_before_they_use_all_memory(schema: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="more than 4 patterns or formats"):
        compile_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {f"p{number}": each for number, each in enumerate(MANY)}, "anyOf": [{"required": ["p1"]}]},
        {"anyOf": MANY},
        {"properties": {f"p{n}": {"allOf": [{"$ref": f"#/$defs/d{n}"}]} for n in range(16)}, **DEFINITIONS},
        {
            "allOf": [{"$ref": f"#/definitions/{n}"} for n in range(16)],
            "definitions": {str(n): {"properties": {f"p{n}": pattern(n)}} for n in range(16)},
        },
    ],
)
def test_separate_patterns_are_accepted(schema: dict[str, Any], model: Model) -> None:
    model.grammars.constraints(StructuredOutput(json_schema=schema), 400, model.tokenizer.eos_token_ids)


def test_a_schema_nested_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(70):
        schema = {"items": schema}
    with pytest.raises(UsageError, match="nested more than 64"):
        compile_schema(schema)


def deep(count: int) -> dict[str, Any]:
    definitions = {str(number): {"properties": {"a": {"$ref": f"#/$defs/{number + 1}"}}} for number in range(count)}
    return {"$ref": "#/$defs/0", "$defs": {**definitions, str(count): {}}}


def chained(count: int) -> dict[str, Any]:
    definitions = {str(number): {"$ref": f"#/$defs/{number + 1}"} for number in range(count)}
    return {"$ref": "#/$defs/0", "$defs": {**definitions, str(count): {"type": "null"}}}


def nested_opposites(count: int) -> dict[str, Any]:
    inner = {"properties": {str(number): {"type": "null"} for number in range(count)}}
    return {"not": {"anyOf": [{"properties": {str(number): {"not": inner}}} for number in range(count)]}}


def test_references_nested_too_deep_are_refused() -> None:
    with pytest.raises(UsageError, match="json_schema is too complex: its references are nested too deep"):
        compile_schema(deep(2000))


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "schema",
    [
        deep(300),
        chained(2000),
        nested_opposites(9),
        {"allOf": [{"anyOf": [{"required": [f"a{n}"]}, {"required": [f"b{n}"]}]} for n in range(40)]},
        {"oneOf": [{"required": [f"a{n}"]} for n in range(40)]},
        {"dependentRequired": {f"a{n}": [f"b{n}"] for n in range(40)}},
        {"$ref": "#", "allOf": [{"$ref": "#"}], "anyOf": [{"$ref": "#"}, {"type": "string"}]},
        {"oneOf": [{"$ref": "#"}, {"not": {"type": "null"}}]},
        {"propertyNames": {"$ref": "#"}, "unevaluatedItems": False, "dependentRequired": {"a": []}},
        {"additionalProperties": False, "unevaluatedItems": {"$ref": "#"}, "enum": [[None], []]},
    ],
)
def test_a_compilation_ends_soon(schema: dict[str, Any]) -> None:
    assert compile_schema(schema).grammar
