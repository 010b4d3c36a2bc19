"""Which values the grammars of schemas have: schemas of every form, strict, with valid and invalid instances."""

from typing import Any

import pytest

from faquant.structured.json_schema import compile_schema
from oracles.schemas import Recognizer, is_valid

CLOSED = {"type": "object", "additionalProperties": False}


def closed(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {**CLOSED, "properties": properties, "required": required if required is not None else list(properties)}


STRING, INTEGER = {"type": "string"}, {"type": "integer"}
CAT = closed(kind={"const": "cat"}, lives=INTEGER)
DOG = closed(kind={"const": "dog"}, breed=STRING)
Case = tuple[Any, list[Any], list[Any]]
NEUTRAL: list[Case] = [
    ({"propertyNames": {"type": "string"}, **CLOSED, "properties": {"a": {}}}, [{"a": 1}, {}], [{"b": 1}]),
    ({"anyOf": [{"type": "null"}, {"not": {}}]}, [None], [1]),
    ({"type": "array", "uniqueItems": True, "maxItems": 1}, [[], [1]], [[1, 1]]),
    ({**closed(a=INTEGER), "unevaluatedProperties": False}, [{"a": 1}], [{"a": 1, "b": 1}]),
    ({"type": ["string", "null"], "minimum": 5, "required": ["a"]}, ["x", None], [3, {}]),
    ({"then": {"type": "string"}, "else": False, "type": "integer"}, [5], ["x"]),
    ({"minContains": 3, "type": "array"}, [[], [1]], [{}]),
    ({"definitions": {"a": {"pattern": "("}}, "type": "null"}, [None], [1]),
]
OBJECTS: list[Case] = [
    (
        {"type": "object", "required": ["a"], "not": {"const": {"a": 1}}},
        [{"a": 2}, {"a": None}],
        [{"a": 1}, {"b": 1}],
    ),
    (
        {**closed(type=STRING), "not": {"enum": [{"type": "a"}, {"type": "b"}]}},
        [{"type": "c"}],
        [{"type": "a"}, {"type": "b"}],
    ),
    ({"propertyNames": {"enum": ["a", "b"]}, "type": "object"}, [{}, {"a": 1, "b": []}], [{"c": 1}]),
    (
        {"propertyNames": {"pattern": "^x"}, "properties": {"a": {}}, "type": "object"},
        [{"xy": 1}],
        [{"a": 1}, {"y": 1}],
    ),
    ({"propertyNames": {"maxLength": 2}, "additionalProperties": INTEGER, "type": "object"}, [{"ab": 1}], [{"abc": 1}]),
    ({"patternProperties": {"^-?[0-9]+$": STRING}, **CLOSED}, [{"1": "a", "-22": ""}], [{"a": ""}, {"1": 1}]),
    ({"minProperties": 1, "type": "object"}, [{"a": 1}], [{}]),
    (
        {"minProperties": 2, "properties": {"a": {}, "b": {}}, "type": "object"},
        [{"a": 1, "b": 1}, {"b": 1, "x": 1}],
        [{"x": 1}],
    ),
    ({"minProperties": 1, **closed([], a=INTEGER, b=INTEGER)}, [{"a": 1}, {"b": 1}, {"a": 1, "b": 2}], [{}]),
    ({"minProperties": 2, **closed([], a={}, b={}, c={})}, [{"a": 1, "c": 1}, {"b": 1, "c": 2}], [{}, {"a": 1}]),
    ({"maxProperties": 2, **closed(["b"], a={}, b={}, c={})}, [{"b": 1}, {"b": 1, "c": 2}], [{"a": 1, "b": 1, "c": 1}]),
    ({"maxProperties": 1, "type": "object"}, [{}, {"x": 1}], [{"x": 1, "y": 1}]),
    (
        {"minProperties": 3, "propertyNames": {"enum": ["a", "b", "c", "d"]}, "type": "object"},
        [{"a": 1, "b": 1, "d": 1}],
        [{"a": 1, "b": 1}],
    ),
    (
        {"dependentRequired": {"a": ["b"]}, **closed([], a={}, b={})},
        [{}, {"b": 1}, {"a": 1, "b": 1}],
        [{"a": 1}],
    ),
    (
        {"dependencies": {"a": ["b"], "c": {"required": ["a"]}}, **closed([], a={}, b={}, c={})},
        [{}, {"b": 1}, {"a": 1, "b": 1}, {"a": 1, "b": 1, "c": 1}],
        [{"a": 1}, {"c": 1}],
    ),
    (
        {"allOf": [closed([], a=INTEGER, b={}), {"properties": {"a": {"minimum": 3}}, "required": ["a"]}]},
        [{"a": 3}, {"a": 4, "b": 1}],
        [{}, {"a": 2}, {"a": 3, "c": 1}],
    ),
    (
        {
            "allOf": [{"$ref": "#/$defs/base"}],
            "properties": {"b": STRING},
            "unevaluatedProperties": False,
            "type": "object",
            "$defs": {"base": {"properties": {"a": INTEGER}, "required": ["a"]}},
        },
        [{"a": 1}, {"a": 1, "b": "x"}],
        [{"a": 1, "c": 1}, {"b": "x"}],
    ),
    (
        {"properties": {"a": {"const": 1}}, "patternProperties": {"^[ab]": INTEGER, "b": {"minimum": 5}}, **CLOSED},
        [{"a": 1}, {"b": 5}, {"a2": 1}],
        [{"a": 2}, {"b": 4}, {"b": "x"}, {"ab": 4}],
    ),
]
ARRAYS: list[Case] = [
    ({"items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "type": "array"}, [[], ["b"], ["c", "a"]], [["a", "a"]]),
    (
        {"items": {"enum": ["a", "b"]}, "uniqueItems": True, "minItems": 2, "type": "array"},
        [["b", "a"], ["a", "b"]],
        [[], ["a"], ["a", "a"]],
    ),
    (
        {"items": {"type": ["boolean", "null"]}, "uniqueItems": True, "maxItems": 2, "type": "array"},
        [[True, None]],
        [[True, True], [True, False, None]],
    ),
    (
        {"items": {"type": "integer", "minimum": 1, "maximum": 40}, "uniqueItems": True, "type": "array"},
        [[40, 1, 7], list(range(1, 41))],
        [[1, 2, 1], [41]],
    ),
    ({"contains": {"const": 5}, "type": "array"}, [[5], [1, 5], [5, "x", 5]], [[], [1]]),
    (
        {"contains": {"const": 5}, "minContains": 2, "maxContains": 3, "items": INTEGER, "type": "array"},
        [[5, 5], [1, 5, 2, 5, 3], [5, 5, 5]],
        [[5], [5, 5, 5, 5], [5, "x", 5]],
    ),
    (
        {"contains": {"type": "null"}, "minContains": 0, "maxContains": 1, "type": "array"},
        [[], [1], [None, 2]],
        [[None, None]],
    ),
    ({"contains": STRING, "maxItems": 3, "type": "array"}, [["a"], ["a", 1, 2]], [[], [1], ["a", 1, 2, 3]]),
    (
        {"prefixItems": [STRING, INTEGER], "items": {"type": "null"}, "minItems": 1, "type": "array"},
        [["a"], ["a", 1], ["a", 1, None, None]],
        [[], [1], ["a", 1, 2]],
    ),
    ({"items": [STRING, INTEGER], "additionalItems": False, "type": "array"}, [[], ["a", 1]], [["a", 1, 2]]),
    (
        {"prefixItems": [STRING], "unevaluatedItems": {"type": "null"}, "type": "array"},
        [["a"], ["a", None]],
        [["a", 1]],
    ),
]
CASES_SPLIT: list[Case] = [
    ({"not": {"enum": ["a", "b"]}, "type": "string"}, ["", "c", "ab"], ["a", "b"]),
    ({"not": {"const": 5}, "type": "integer"}, [4, 55, -5], [5]),
    ({"not": {"const": 2.5}, "type": "number"}, [2, 2.25, 25], [2.5]),
    ({"not": {"type": ["string", "object"]}}, [1, None, [], True], ["a", {}]),
    ({"not": {"type": "integer"}, "type": "number"}, [1.5, -0.25], [1, 0]),
    ({"not": {"pattern": "^a"}, "type": "string"}, ["", "ba"], ["a", "ab"]),
    ({"not": {"required": ["a"]}, "type": "object"}, [{}, {"b": 1}], [{"a": 1}]),
    (
        {"not": {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, "type": "object"},
        [{"c": 1}],
        [{"a": 1}, {"b": 1}],
    ),
    ({"not": {"minimum": 3, "maximum": 5}, "type": "number"}, [2, 6], [3, 4.5]),
    ({"not": {"items": INTEGER}, "type": "array"}, [["a"], [1, "a"]], [[], [1]]),
    ({"not": {"maxLength": 2}, "type": "string"}, ["abc"], ["", "ab"]),
    ({"not": {"const": None}}, [1, "a"], [None]),
    ({"oneOf": [INTEGER, {"type": "number", "minimum": 2}]}, [1, 2.5, -3], [2, 3, 1.5]),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, [1.5], [1]),
    (
        {"oneOf": [CAT, DOG]},
        [{"kind": "cat", "lives": 9}, {"kind": "dog", "breed": ""}],
        [{"kind": "cat", "breed": ""}],
    ),
    (
        {"oneOf": [{"required": ["a"]}, {"required": ["b"]}], **closed([], a=INTEGER, b=INTEGER)},
        [{"a": 1}, {"b": 1}],
        [{}, {"a": 1, "b": 1}],
    ),
    (
        {"oneOf": [closed([], a=INTEGER, b=INTEGER), closed([], c=INTEGER)]},
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 2}, {"c": 1}],
        [{}, {"a": 1, "c": 1}],
    ),
    (
        {"oneOf": [closed([], a=INTEGER), {"type": "object", "properties": {"b": STRING}}]},
        [{"b": ""}, {"x": 1}, {"a": ""}, {"b": "", "x": 1}],
        [{}, {"a": 1}, {"b": 1}],
    ),
    (
        {"not": {"patternProperties": {"^x": INTEGER}}, **closed([], x1={}, y={})},
        [{"x1": ""}],
        [{}, {"x1": 1}, {"y": ""}],
    ),
    (
        {"not": {"patternProperties": {"^x": {"not": STRING}}}, "propertyNames": {"pattern": "^.{3}$"}},
        [{"xaa": ""}, {"xaa": "a", "bbb": 1}],
        [{}, {"xaa": 1}, {"xx": ""}, {"yyy": ""}],
    ),
    (
        {"not": {"propertyNames": {"enum": ["a", "b"]}}, "propertyNames": {"enum": ["b", "c", "d"]}},
        [{"c": 1}, {"d": 1}, {"c": 1, "b": 1}],
        [{}, {"b": 1}, {"a": 1, "c": 1}],
    ),
    ({"enum": [{"xa": 1}, {"xa": ""}], "not": {"patternProperties": {"^x": INTEGER}}}, [{"xa": ""}], [{"xa": 1}, {}]),
    ({"enum": [{}, {"a": 1}], "not": {"additionalProperties": False}}, [{"a": 1}], [{}]),
    ({"enum": [[1.0], [True], {"a": [1]}], "not": {"enum": [[True], {"a": [True]}]}}, [[1], {"a": [1]}], [[True]]),
    (
        {"type": "array", "items": INTEGER, "not": {"enum": [[1, 2], [1, 2, 3], ["a"]]}},
        [[], [1], [1, 2, 3, 4]],
        [[1, 2], [1, 2, 3]],
    ),
    ({"type": ["array", "object"], "not": {"enum": [[], {}]}}, [[1], {"a": 1}, {"b": 1, "c": 2}], [[], {}]),
    ({"type": "object", "not": {"const": {"a": 1, "b": 2}}}, [{}, {"a": 1}, {"b": 2, "c": 3}], [{"a": 1, "b": 2}]),
    ({**closed(a=INTEGER, b=INTEGER), "not": {"const": {"a": "x"}}}, [{"a": 1, "b": 2}], [{"a": "x"}]),
    (
        {
            "if": {"properties": {"kind": {"const": "cat"}}, "required": ["kind"]},
            "then": {"required": ["lives"]},
            "else": {"properties": {"lives": False}},
            **closed(["kind"], kind={"enum": ["cat", "dog"]}, lives=INTEGER),
        },
        [{"kind": "cat", "lives": 9}, {"kind": "dog"}],
        [{"kind": "cat"}, {"kind": "dog", "lives": 1}],
    ),
    (
        {"if": {"type": "string"}, "then": {"minLength": 2}, "type": ["string", "null"]},
        ["ab", None],
        ["a"],
    ),
    (
        {"allOf": [{"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, closed([], a={}, b={})]},
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}],
        [{}, {"c": 1}],
    ),
    ({"enum": [1, "a", None, {"b": [1.5]}], "type": ["integer", "object"]}, [1, {"b": [1.5]}], ["a", None, {"b": [1]}]),
    ({"enum": ["abc", "b"], "pattern": "^a"}, ["abc"], ["b", "a"]),
    ({"$ref": "#/definitions/a", "definitions": {"a": {"$ref": "#/definitions/b"}, "b": INTEGER}}, [1], ["a"]),
    ({"$ref": "#x", "$defs": {"a": {"$anchor": "x", "type": "null"}}}, [None], [1]),
    (
        {"$id": "http://x/a", "$ref": "b#/$defs/c", "$defs": {"b": {"$id": "b", "$defs": {"c": INTEGER}}}},
        [1],
        ["a"],
    ),
    (
        {"properties": {"next": {"$ref": "#"}, "v": INTEGER}, "required": ["v"], **CLOSED},
        [{"v": 1}, {"next": {"next": {"v": 1}, "v": 2}, "v": 3}],
        [{}, {"next": {}, "v": 1}],
    ),
]


@pytest.mark.parametrize(("schema", "admitted", "refused"), NEUTRAL + OBJECTS + ARRAYS + CASES_SPLIT, ids=str)
def test_values(schema: Any, admitted: list[Any], refused: list[Any]) -> None:
    compiled = compile_schema(schema, strict=True)
    values = Recognizer(compiled)
    assert values.has_text(compiled.shortest or "")
    for value in admitted:
        assert value in values
    for value in refused:
        assert value not in values
    if "items" not in schema or not isinstance(schema["items"], list):  # of a draft that is_valid does not check by
        assert all(is_valid(schema, value) for value in admitted if "dependencies" not in schema)
        assert not any(is_valid(schema, value) for value in refused if "dependencies" not in schema)


def test_drafts_before_6_have_exclusive_bounds_as_flags() -> None:
    values = Recognizer(compile_schema({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, strict=True))
    assert 3 not in values
    assert 4 in values


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {}}},
        {"type": "object", "properties": {"a": {}}, "additionalProperties": INTEGER},
        {"type": "object", "properties": {"a": {}}, "patternProperties": {"": INTEGER}},
        {"type": "object", "properties": {"a": {}}, "patternProperties": {"^[a-z]": INTEGER}, "propertyNames": {}},
    ],
    ids=str,
)
def test_names_have_one_spelling(schema: Any) -> None:
    values = Recognizer(compile_schema(schema, strict=True))
    for text in ('{"a": 1}', '{"a": 1, "ab": 1}', '{"b\\n\\u0001\\"": 1}', '{"é": 1}'):
        assert values.has_text(text)
    for text in (
        '{"\\u0061": 1}',
        '{"b": 1, "a": 1}',
        '{"\\u00e9": 1}',
        '{"b\\u000a": 1}',
        '{"b\\u000A": 1}',
        '{"b\\/": 1}',
    ):
        assert not values.has_text(text)
