"""What an answer must look like: a JSON schema, any JSON object, a regular expression, a choice or a grammar."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import UsageError

MAX_BYTES = 256 << 10
MAX_DEPTH = 64
MAX_CHOICES = 1024

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
# Formats whose strings need more than any letters.
_FORMATS = {"email": r"a@a\.aa", "uri": "a:a"}


@dataclass(frozen=True)
class StructuredOutput:
    """The form of an answer; exactly one field is given.

    json_schema: a JSON schema (draft 2020-12), as a mapping or as JSON text; kept as text. json_object: any JSON
    object. regex: of the whole answer, in the syntax of Rust's regex crate. choice: one of these texts. grammar: in
    llguidance's dialect of Lark.

    Raises:
        UsageError: none or several are given, one is no such thing or too large, or the schema has a keyword that
            would not be enforced.
    """

    json_schema: str | Mapping[str, Any] | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        given = [field.name for field in fields(self) if getattr(self, field.name) not in (None, False)]
        if len(given) != 1:
            names = ", ".join(field.name for field in fields(self))
            raise UsageError(f"Structured output takes exactly one of {names}, not {len(given)} of them.")
        value = getattr(self, given[0])
        if given[0] == "json_schema":
            value = _checked_schema(value)
        elif given[0] == "json_object":
            if value is not True:
                raise UsageError("json_object must be true or false.")
        elif given[0] == "choice":
            value = _checked_choice(value)
        else:
            _check_text(given[0], value)
        object.__setattr__(self, given[0], value)

    @property
    def is_json(self) -> bool:
        """Whether the answer is a JSON text."""
        return self.json_object or self.json_schema is not None

    def patterns(self) -> list[str]:
        """The regular expressions of the answer, or of strings in it."""
        found = [] if self.regex is None else [self.regex]
        schema = json.loads(self.json_schema) if isinstance(self.json_schema, str) else {}
        for _, part in _subschemas("", schema):
            names = part.get("patternProperties")
            found += names if isinstance(names, dict) else []
            found += [part["pattern"]] if isinstance(part.get("pattern"), str) else []
            found += [_FORMATS[part["format"]]] if part.get("format") in _FORMATS else []
        return list(dict.fromkeys(found))


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name} must be a text that is not empty.")
    # Half a surrogate pair, which JSON can carry, has no UTF-8; it is refused here and counted as too long.
    size = len(value.encode("utf-8", "replace"))
    if size > MAX_BYTES or any("\ud800" <= mark <= "\udfff" for mark in value):
        raise UsageError(f"{name} must be valid Unicode of at most {MAX_BYTES} bytes; this has {size}.")


def _checked_choice(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not 0 < len(value) <= MAX_CHOICES:
        raise UsageError(f"choice must be a list of 1 to {MAX_CHOICES} texts.")
    for text in value:
        _check_text("choice", text)
    _check_text("choice", "".join(value))
    return tuple(value)


def _checked_schema(value: object) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
        _check_text("json_schema", text)
        schema = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"json_schema is no JSON: {str(error)[:200]}.") from None
    if not isinstance(schema, dict):
        raise UsageError("json_schema must be a JSON object.")
    if _depth(schema) > MAX_DEPTH:
        raise UsageError(f"json_schema is nested more than {MAX_DEPTH} deep.")
    for place, part in _subschemas("", schema):
        _check_keywords(place or "its top", part)
    return text


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


def _check_keywords(place: str, schema: Mapping[str, Any]) -> None:
    unknown = [key for key in schema if key not in _KNOWN and (not key.startswith("x-") or key == "x-guidance")]
    if unknown:
        raise UsageError(f"json_schema has {unknown[0][:80]!r} at {place[:200]}, which cannot be enforced; remove it.")
    required, least = schema.get("required"), schema.get("minProperties")
    # The grammar does not see whether a name comes twice.
    if isinstance(least, int) and least > max(1, len(required) if isinstance(required, list) else 0):
        raise UsageError(f"json_schema has minProperties at {place[:200]}; name the properties in `required` instead.")
