"""The check of finished answers: of all drafts, and never long."""

from typing import Any

import pytest

from faquant.errors import UsageError
from faquant.structured.json_schema import compile_schema
from faquant.structured.structured_output import StructuredOutput
from faquant.structured.tools.calls import Tool, ToolCalls

TWICE = r"^([ab])\1$"
"""A pattern that no grammar here has."""
DRAFT_7 = "http://json-schema.org/draft-07/schema#"


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"pattern": TWICE, "type": "string"}, '"aa"', '"ab"'),
        ({"$schema": DRAFT_7, "$ref": "#/definitions/a", "definitions": {"a": {}}, "pattern": TWICE}, '"bb"', '"ba"'),
        ({"$schema": "https://example.org/mine", "$id": "https://example.org/a", "pattern": TWICE}, '"aa"', '"ab"'),
        ({"items": [{"pattern": TWICE}], "additionalItems": {"type": "null"}}, '["aa", null]', '["aa", 1]'),
        ({"minimum": 3, "exclusiveMinimum": True, "pattern": TWICE}, "4", "3"),
        ({"maximum": 3, "exclusiveMaximum": False, "pattern": TWICE}, "3", "4"),
        ({"dependencies": {"a": ["b"]}, "properties": {"c": {"pattern": TWICE}}}, '{"a": 1, "b": 1}', '{"a": 1}'),
        ({"dependencies": {"a": {"required": ["b"]}}, "properties": {"c": {"pattern": TWICE}}}, "{}", '{"a": 1}'),
        ({"properties": {"c": {"$ref": "#x"}}, "$defs": {"d": {"$anchor": "x", "pattern": TWICE}}}, "{}", '{"c":"ab"}'),
        ({"allOf": [{"pattern": TWICE}], "$ref": "#/$defs/a", "$defs": {"a": {"minLength": 2}}}, '"aa"', '"a"'),
        (
            {"properties": {"next": {"$ref": "#"}, "value": {"pattern": TWICE}}},
            '{"next": {"next": {"value": "aa"}}}',
            '{"next": {"next": {"value": "ab"}}}',
        ),
    ],
)
def test_all_drafts(schema: dict[str, Any], right: str, wrong: str) -> None:
    compiled = compile_schema(schema)
    assert compiled.unenforced
    assert compiled.problem(right) is None
    assert compiled.problem(wrong)


@pytest.mark.parametrize("keyword", ["allOf", "anyOf"])
def test_alternatives_that_multiply_are_refused(keyword: str) -> None:
    """Each reference doubles the schemas that the value would be compared with."""
    definitions: dict[str, Any] = {
        f"a{number}": {keyword: [{"$ref": f"#/$defs/a{number + 1}"}, {"$ref": f"#/$defs/a{number + 1}"}]}
        for number in range(24)
    }
    schema = {"$ref": "#/$defs/a0", "$defs": {**definitions, "a24": {"type": "string", "pattern": TWICE}}}
    with pytest.raises(UsageError, match="too many references and alternatives"):
        compile_schema(schema)


def test_circles_that_multiply_are_refused() -> None:
    inner = [{"items": {"$ref": "#"}}, {"items": {"$ref": "#"}, "minItems": 1}]
    with pytest.raises(UsageError, match="too many references and alternatives"):
        compile_schema({"anyOf": [*inner, {"type": "string", "pattern": TWICE}]})


def test_combinations_that_multiply_are_left_to_the_check() -> None:
    """Of hundreds of choices, the grammar describes none soon, instead of many late."""
    names = [f"p{number}" for number in range(100)]
    rings = {name: [names[(place + 3) % 100]] for place, name in enumerate(names)}
    schema = {"type": "object", "properties": {name: {} for name in names}, "dependentRequired": rings}
    assert compile_schema(schema).unenforced == ("'dependentRequired' at its top",)
    with pytest.raises(UsageError, match=r"'dependentRequired' at its top, .* too many combinations"):
        compile_schema(schema, strict=True)


def test_answers_that_are_nested_too_deep_are_wrong() -> None:
    assert compile_schema({"pattern": TWICE}).problem("[" * 100_000 + "]" * 100_000)


def test_a_schema_is_compiled_once() -> None:
    schema = {"type": "object", "properties": {"once": {"type": "integer"}}}
    answers = StructuredOutput(json_schema=schema, tool_calls=ToolCalls((Tool("a", schema),), "hermes"))
    assert answers.compiled is compile_schema(schema) is answers.parts[0].compiled


@pytest.mark.parametrize("format", ["pythonic", "qwen3_coder"])
def test_annotations_are_no_reason_to_refuse_a_tool(format: str) -> None:
    day = {"type": "string", "format": "x-day", "minLength": 2.0, "maxLength": 3}
    schema = {"type": "object", "properties": {"day": day}, "examples": [{}], "$id": "https://example.org/a"}
    ToolCalls((Tool("plan", schema),), format)
