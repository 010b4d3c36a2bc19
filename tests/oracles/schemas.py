"""Random JSON schemas with all keywords, random instances for them, and grammars as recognizers of JSON texts."""

import json
from typing import Any

import jsonschema
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from faquant.structured.json_schema import CompiledSchema
from faquant.structured.repetitions import Repetitions, UniqueArrays

_BYTES = LLTokenizer("byte")
NAMES = st.sampled_from(["a", "b", "ab", "é"])
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.sampled_from([0.5, -1.5, 2.0, 1e-5, 1e20]),
    st.sampled_from(["", "a", "b", "ab", "aab", "0", "é", 'q"\\', "\n", "2024-02-29", "P1D"]),
)
INSTANCES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=5,
)
_COUNTS = st.integers(0, 3)
_PATTERNS = st.sampled_from(["^a", "b$", "^[ab]+$", "^(?!a)", "é|0", "^.{2}$", "^(?=.*b)a", "(^a|b)$"])


def _keywords(inner: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    some = st.lists(inner, min_size=1, max_size=3)
    named = st.dictionaries(NAMES, inner, min_size=1, max_size=3)
    names = st.lists(NAMES, unique=True, max_size=2)
    bound = st.one_of(st.integers(-2, 8), st.sampled_from([0.5, -1.5]))
    return {
        "type": st.sampled_from(
            ["null", "boolean", "integer", "number", "string", "array", "object", ["string", "array"]]
        ),
        "enum": st.lists(INSTANCES, min_size=1, max_size=4),
        "const": INSTANCES,
        "minimum": bound,
        "maximum": bound,
        "exclusiveMinimum": bound,
        "exclusiveMaximum": bound,
        "multipleOf": st.sampled_from([1, 2, 3, 0.5]),
        "minLength": _COUNTS,
        "maxLength": _COUNTS,
        "pattern": _PATTERNS,
        "format": st.sampled_from(["date", "duration", "unknown"]),
        "items": inner,
        "prefixItems": some,
        "minItems": _COUNTS,
        "maxItems": _COUNTS,
        "uniqueItems": st.booleans(),
        "contains": inner,
        "minContains": st.integers(0, 2),
        "maxContains": st.integers(0, 2),
        "properties": named,
        "patternProperties": st.dictionaries(_PATTERNS, inner, min_size=1, max_size=2),
        "additionalProperties": inner,
        "required": names,
        "minProperties": _COUNTS,
        "maxProperties": _COUNTS,
        "propertyNames": inner,
        "dependentRequired": st.dictionaries(NAMES, names, max_size=2),
        "dependentSchemas": named,
        "allOf": some,
        "anyOf": some,
        "oneOf": some,
        "not": inner,
        "if": inner,
        "then": inner,
        "else": inner,
        "unevaluatedProperties": inner,
        "unevaluatedItems": inner,
        "title": st.just("t"),
    }


def _schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keywords = _keywords(inner)

    @st.composite
    def some(draw: st.DrawFn) -> dict[str, Any]:
        chosen = draw(st.lists(st.sampled_from(sorted(keywords)), unique=True, min_size=1, max_size=4))
        return {key: draw(keywords[key]) for key in chosen}

    return some()


_LEAVES = st.one_of(
    st.booleans(),
    st.sampled_from(["string", "integer", "object", "array", "null"]).map(lambda name: {"type": name}),
    # Not in the same place, where it would have no meaning.
    st.sampled_from([{"items": {"$ref": "#"}}, {"properties": {"a": {"$ref": "#"}}}, {"contains": {"$ref": "#"}}]),
    _SCALARS.map(lambda value: {"const": value}),
)
ALL_SCHEMAS = st.recursive(_LEAVES, _schemas, max_leaves=7).filter(lambda schema: isinstance(schema, dict))


class Recognizer:
    """The values that the grammar of a compiled schema admits, without those that repeat a name or an item."""

    def __init__(self, compiled: CompiledSchema) -> None:
        self._matcher = LLMatcher(_BYTES, LLMatcher.grammar_from_lark(compiled.grammar), log_level=0)
        assert not self._matcher.is_error(), self._matcher.get_error()
        self._repetitions = Repetitions(UniqueArrays(compiled.unique_paths))

    def has_text(self, text: str) -> bool:
        data = text.encode()
        if self._repetitions.after(data) is None:
            return False
        return self._matcher.deep_copy().validate_tokens([*data, _BYTES.eos_token]) == len(data) + 1

    def __contains__(self, value: Any) -> bool:
        return self.has_text(json.dumps(value, ensure_ascii=False))


def is_valid(schema: Any, value: Any) -> bool:
    """What jsonschema says."""
    validator = jsonschema.Draft202012Validator
    return validator(schema, format_checker=validator.FORMAT_CHECKER).is_valid(value)
