"""The keywords of JSON Schema, of all drafts since 4: what is in them, and what looks like one but is none."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from ...errors import UsageError

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
ONE = {
    *("items", "additionalItems", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties"),
}
LISTS = {"allOf", "anyOf", "oneOf", "prefixItems", "items"}
NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
# Known annotations, some of which look like keywords.
_ANNOTATIONS = {"title", "description", "default", "example", "examples", "options", "name", "multiple"}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == int(value) >= 0


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_schema(value: object) -> bool:
    return isinstance(value, dict | bool)


def _is_type(value: object) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


_Check = tuple[Callable[[object], bool], str]
_COUNT: _Check = (_is_count, "a non-negative integer")
_BOUND: _Check = (_is_number, "a number")
_OPEN_BOUND: _Check = (lambda value: isinstance(value, bool) or _is_number(value), "a number")
_TEXT: _Check = (lambda value: isinstance(value, str), "a string")
_SCHEMA: _Check = (_is_schema, "a schema")
_SCHEMAS: _Check = (
    lambda value: isinstance(value, list) and bool(value) and all(map(_is_schema, value)),
    "a list of one or more schemas",
)
_MAP: _Check = (lambda value: isinstance(value, dict) and all(map(_is_schema, value.values())), "an object of schemas")
_CHECKS: dict[str, _Check] = {
    "type": (_is_type, f"one or more of {', '.join(TYPES)}"),
    "enum": (lambda value: isinstance(value, list), "a list"),
    "const": (lambda value: True, "a value"),
    **dict.fromkeys((*REFERENCES, "pattern", "format"), _TEXT),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _COUNT),
    **dict.fromkeys(("minContains", "maxContains"), _COUNT),
    **dict.fromkeys(("minimum", "maximum"), _BOUND),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), _OPEN_BOUND),
    "multipleOf": (_is_positive, "a number greater than 0"),
    "required": (_is_names, "a list of names"),
    "uniqueItems": (lambda value: isinstance(value, bool), "true or false"),
    **dict.fromkeys(ONE, _SCHEMA),
    **dict.fromkeys(LISTS - {"prefixItems"}, _SCHEMAS),
    "prefixItems": (lambda value: isinstance(value, list) and all(map(_is_schema, value)), "a list of schemas"),
    "items": (
        lambda value: _is_schema(value) or (isinstance(value, list) and all(map(_is_schema, value))),
        "a schema or a list of schemas",
    ),
    **dict.fromkeys(NAMED, _MAP),
    "dependencies": (
        lambda value: isinstance(value, dict) and all(_is_schema(one) or _is_names(one) for one in value.values()),
        "an object of schemas or lists of names",
    ),
    "dependentRequired": (
        lambda value: isinstance(value, dict) and all(map(_is_names, value.values())),
        "an object of lists of names",
    ),
}
# Constraints of draft 3 and of extensions, which have no meaning in JSON Schema now.
_FOREIGN = {
    *("extends", "disallow", "divisibleBy", "patternRequired", "propertyDependencies"),
    *("formatMinimum", "formatMaximum", "formatExclusiveMinimum", "formatExclusiveMaximum"),
}
_LOWER = {key.lower(): key for key in _CHECKS}
_LONGEST_KEY = 40  # no longer one is similar to a keyword
CONSTRAINING = _CHECKS.keys() - {"$defs", "definitions", "then", "else", "minContains", "maxContains"}
"""Without these keywords a schema admits every value."""


def subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas directly within a schema, with the ends of their places."""
    for key, value in schema.items():
        if key in NAMED and isinstance(value, dict):
            for name, part in value.items():
                if _is_schema(part):
                    yield f"/{key}/{name}", part
        elif key in LISTS and isinstance(value, list):
            for number, part in enumerate(value):
                yield f"/{key}/{number}", part
        elif key in ONE:
            yield f"/{key}", value


@lru_cache(maxsize=256)
def _similar(key: str) -> str | None:
    """The keyword that was probably meant."""
    found = difflib.get_close_matches(key.lower(), _LOWER, 1, 0.85)
    return _LOWER[found[0]] if found else None


def check_keywords(name: str, place: str, schema: Mapping[str, Any], strict: bool) -> None:
    """Raises: UsageError: a keyword has an invalid value, or, if strict, is probably a misspelled one."""
    for key, value in schema.items():
        check = _CHECKS.get(key)
        if check is not None:
            if not check[0](value):
                shown = str(value)[:80]
                raise UsageError(f"{name} has {key!r} at {place[:200] or 'its top'}, which must be {check[1]}: {shown}")
        elif strict and key[:1].isalpha() and not key.startswith("x-") and key not in _ANNOTATIONS:
            meant = None if key in _FOREIGN else _similar(key[:_LONGEST_KEY])
            if meant or key in _FOREIGN:
                fix = f"write {meant!r}, or remove it" if meant else "remove it"
                raise UsageError(
                    f"{name} has {key[:80]!r} at {place[:200] or 'its top'}, which is no keyword of JSON Schema and "
                    f"would have no effect; {fix}."
                )
