"""JSON schemas: validation, and the patterns in them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jsonschema_rs

from ..errors import UsageError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_BYTES = 256 << 10
MAX_DEPTH = 64
MAX_COMBINED = 4
"""Regular expressions that one string must match at once. The size of their intersection grows with their product."""
# Allow the whitespace that usual printers write, but no endless run of it.
OPTIONS: "JsonCompileOptions" = {"whitespace_pattern": r"\n? {0,16}", "lenient": False}
"""llguidance's options for JSON schemas."""

_SCHEMA = {"items", "additionalItems", "additionalProperties"}
_SCHEMAS = {"allOf", "anyOf", "oneOf", "prefixItems", "items"}
_NAMED_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions"}
_CONSTRAINTS = {
    *("type", "enum", "const", "$ref", "required", "minProperties", "maxProperties", "minItems", "maxItems", "format"),
    *("minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_ANNOTATIONS = {
    *("title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"),
    *("$schema", "$id", "$anchor", "$comment", "contentMediaType", "contentEncoding", "contentSchema"),
}
_KNOWN = _SCHEMA | _SCHEMAS | _NAMED_SCHEMAS | _CONSTRAINTS | _ANNOTATIONS
_STEP = 1e-6
# Formats with a required syntax, each with a regular expression for a short example.
_FORMATS = {"email": r"a@a\.aa", "uri": "a:a", "duration": "P1D"}


@dataclass(frozen=True)
class CompiledSchema:
    """A JSON schema and the grammar of its values.

    Attributes:
        text: the schema as JSON text.
        unenforced: the keywords that the grammar does not enforce, with their places, such as "'not' at /properties/a".
            If there are any, an answer may violate the schema, so that `problem` has to check it.
    """

    text: str
    unenforced: tuple[str, ...] = ()

    def problem(self, answer: str) -> str | None:
        """What is wrong with an answer, and where in it; None if it is JSON of the schema with no name twice."""
        try:
            value = json.loads(answer, object_pairs_hook=_object_with_unique_names)
        except ValueError as error:
            return f"The answer is not valid JSON: {error}"
        wrong = next(self._validator.iter_errors(value), None)
        if wrong is None:
            return None
        return f"{wrong.message[:500]} (at /{'/'.join(map(str, wrong.instance_path))})"

    @cached_property
    def _validator(self) -> "jsonschema_rs.Validator":
        return jsonschema_rs.validator_for(json.loads(self.text), validate_formats=False, retriever=_retrieve_nothing)


def compile_schema(value: object, name: str = "json_schema", strict: bool = False) -> CompiledSchema:
    """Compile a schema (draft 2020-12), given as a mapping or JSON text. Errors call it `name`.

    strict: refuse what the grammar cannot enforce, instead of listing it in `unenforced`.

    Raises:
        UsageError: it is not a JSON schema, too large, too deep, or, if strict, has a keyword that cannot be enforced.
    """
    return CompiledSchema(checked_schema(value, name))


def _object_with_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice.")
    return found


def _retrieve_nothing(uri: str) -> None:
    raise ValueError(f"{uri} is not part of the schema")


def checked_schema(value: object, name: str = "json_schema") -> str:
    """Validate a schema (draft 2020-12), given as a mapping or JSON text; return it as text. Errors call it `name`.

    Raises:
        UsageError: it is not a JSON schema, too large, too deep, or has a keyword that would not be enforced.
    """
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
        check_text(name, text)
        schema = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{name} is not valid JSON: {str(error)[:200]}.") from None
    if not isinstance(schema, dict):
        raise UsageError(f"{name} must be a JSON object.")
    if _depth(schema) > MAX_DEPTH:
        raise UsageError(f"{name} is nested more than {MAX_DEPTH} levels deep.")
    regexes = _regexes(schema)
    moved = False
    for place, part in _subschemas("", schema):
        _check_keywords(name, place or "its top", part)
        if _combined(part, regexes) > MAX_COMBINED:
            raise UsageError(
                f"{name} combines more than {MAX_COMBINED} patterns or formats at {place[:200] or 'its top'}, which "
                "would take too long; merge them into one, or move them into the properties."
            )
        moved |= _move_exclusive_bound(part, "exclusiveMinimum", "minimum", 1)
        moved |= _move_exclusive_bound(part, "exclusiveMaximum", "maximum", -1)
    return json.dumps(schema, ensure_ascii=False) if moved else text


def check_text(name: str, value: object) -> None:
    """Raises: UsageError: `value` is not a string, or is empty, too large or invalid Unicode."""
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name} must be a non-empty string.")
    # JSON can contain unpaired surrogates, which UTF-8 cannot encode.
    size = len(value.encode("utf-8", "replace"))
    if size > MAX_BYTES or any("\ud800" <= mark <= "\udfff" for mark in value):
        raise UsageError(f"{name} must be valid Unicode of at most {MAX_BYTES} bytes; it has {size}.")


def patterns(schema: str) -> list[str]:
    """The regular expressions of strings in a schema."""
    found: list[str] = []
    for _, part in _subschemas("", json.loads(schema)):
        names = part.get("patternProperties")
        found += names if isinstance(names, dict) else []
        found += [part["pattern"]] if isinstance(part.get("pattern"), str) else []
        found += [_FORMATS[part["format"]]] if part.get("format") in _FORMATS else []
    return found


def _depth(value: object) -> int:
    level, depth = [value], 0
    while level:
        depth += 1
        level = [item for part in level for item in _children(part)]
    return depth


def _children(value: object) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _subschemas(place: str, schema: object) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(schema, dict):
        return
    yield place, schema
    for key, value in schema.items():
        if key in _NAMED_SCHEMAS and isinstance(value, dict):
            for name, part in value.items():
                yield from _subschemas(f"{place}/{key}/{name}", part)
        elif key in _SCHEMAS and isinstance(value, list):
            for number, part in enumerate(value):
                yield from _subschemas(f"{place}/{key}/{number}", part)
        elif key in _SCHEMA:
            yield from _subschemas(f"{place}/{key}", value)


def _regexes(schema: object) -> int:
    """The number of patterns and formats in a schema."""
    return sum(
        ("pattern" in part) + ("format" in part) + len(part.get("patternProperties") or ())
        for _, part in _subschemas("", schema)
    )


def _combined(schema: Mapping[str, Any], of_all: int) -> int:
    """The number of patterns and formats that one string must match because subschemas are combined; 0 if none are."""

    def branches(key: str) -> list[int]:
        value = schema.get(key)
        return [_regexes(part) + _refers(part) * of_all for part in value] if isinstance(value, list) else []

    here = {key: value for key, value in schema.items() if key not in ("allOf", "anyOf", "oneOf", "$ref", "$defs")}
    parts = [_regexes(here), *branches("allOf"), max(branches("anyOf"), default=0), max(branches("oneOf"), default=0)]
    parts.append(of_all if "$ref" in schema else 0)
    return sum(parts) if sum(part > 0 for part in parts) > 1 else 0


def _refers(schema: object) -> bool:
    return any("$ref" in part for _, part in _subschemas("", schema))


def _check_keywords(name: str, place: str, schema: Mapping[str, Any]) -> None:
    unknown = [key for key in schema if key not in _KNOWN and (not key.startswith("x-") or key == "x-guidance")]
    if unknown:
        raise UsageError(f"{name} has {unknown[0][:80]!r} at {place[:200]}, which cannot be enforced; remove it.")
    required, least = schema.get("required"), schema.get("minProperties")
    # The grammar cannot detect duplicate names.
    if isinstance(least, int) and least > max(1, len(required) if isinstance(required, list) else 0):
        raise UsageError(f"{name} has minProperties at {place[:200]}; list the properties in `required` instead.")


def _move_exclusive_bound(schema: dict[str, Any], exclusive: str, inclusive: str, sign: int) -> bool:
    """Replace an integral exclusive bound by an inclusive one next to it, if the other bound is less than 1 away.

    Otherwise llguidance 1.9.1 admits the bound itself, such as 0 for exclusiveMinimum 0 and maximum 0.5. Returns
    whether the bound was replaced.
    """
    bound: Any = schema.get(exclusive)
    if not _is_number(bound) or bound % 1:
        return False
    others: list[Any] = [schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")]
    away = [(other - bound) * sign for other in others if _is_number(other)]
    nearest = min((distance for distance in away if distance > 0), default=1)
    if nearest >= 1:
        return False
    moved = bound + sign * min(_STEP, nearest / 2)
    schema[inclusive] = max(moved, schema.get(inclusive, moved), key=lambda value: value * sign)
    del schema[exclusive]
    return True


def _is_number(value: object) -> bool:
    """Whether it is a number that floats can distinguish from its neighbors."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


def lark(schema: Mapping[str, Any]) -> str:
    """An expression of llguidance's Lark dialect for JSON of a schema."""
    return "%json " + json.dumps({**schema, "x-guidance": OPTIONS}, ensure_ascii=False)
