"""The types that a JSON schema admits, and its strings as regular expressions, for values not written as JSON."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..json_schema.formats import format_pattern

TYPES = frozenset({"string", "null", "boolean", "number", "object", "array"})
_DEPTH = 16
_OTHERS = [*sorted(TYPES - {"string"})]
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_YEAR = "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_MONTHS = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])"
_DATE = f"{_YEAR}-({_MONTHS})"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": rf"({_BYTE}\.){{3}}{_BYTE}",
    "email": r"[a-zA-Z0-9_+-]+(\.[a-zA-Z0-9_+-]+)*@[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*(\.[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*)+",
    "uri": r"[a-zA-Z][a-zA-Z0-9+.-]*:[a-zA-Z0-9._~/?!$&'()*+,;=@-]+",
}


def types_of(schema: object, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """The types of a schema's values, perhaps more; `integer` counts as number.

    root: the schema with the definitions.
    """
    if not isinstance(schema, Mapping) or depth > _DEPTH:
        return set(TYPES) if schema is not False else set()
    found = set(TYPES)
    if "$ref" in schema:
        found &= types_of(_resolved(schema, root), root, depth + 1)
    if "type" in schema:
        named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        found &= {"number" if name == "integer" else str(name) for name in named}
    if "const" in schema:
        found &= {_type_of(schema["const"])}
    if isinstance(schema.get("enum"), list):
        found &= {_type_of(value) for value in schema["enum"]}
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            found &= {name for part in schema[key] for name in types_of(part, root, depth + 1)}
    for part in schema.get("allOf") or ():
        found &= types_of(part, root, depth + 1)
    return found


def nonstring_part(schema: object, root: Mapping[str, Any], depth: int = 0) -> dict[str, Any] | None:
    """The schema without its strings; None if it has no other values."""
    types = types_of(schema, root) - {"string"}
    if not types:
        return None
    if not isinstance(schema, Mapping) or depth > _DEPTH:
        return {"type": _OTHERS}
    part = dict(schema)
    if "string" not in types_of(schema, root):
        return part
    if "$ref" in part:
        part |= nonstring_part(_resolved(part, root), root, depth + 1) or {}
        del part["$ref"]
    if isinstance(part.get("enum"), list):
        part["enum"] = [value for value in part["enum"] if not isinstance(value, str)]
    for key in ("anyOf", "oneOf"):
        if isinstance(part.get(key), list):
            parts = [nonstring_part(one, root, depth + 1) for one in part[key]]
            part[key] = [one for one in parts if one is not None]
    named = part.get("type", _OTHERS)
    part["type"] = [name for name in (named if isinstance(named, list) else [named]) if name != "string"]
    return part


def string_expression(schema: object, root: Mapping[str, Any], lexeme: Callable[[str], str], depth: int = 0) -> str:
    """The schema's strings as an expression of llguidance's terminals.

    lexeme: makes a terminal from a regular expression for the whole string.

    Raises:
        ValueError: a constraint on strings is not supported.
    """
    if not isinstance(schema, Mapping):
        return lexeme("(?s:.*)")
    if depth > _DEPTH:
        raise ValueError("references to strings are nested too deep")
    unknown = sorted(schema.keys() & {"not", "if"})
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not supported for strings")
    parts = [lexeme(regex) for regex in _regexes(schema)]
    if "$ref" in schema:
        parts.append(string_expression(_resolved(schema, root), root, lexeme, depth + 1))
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            some = [part for part in schema[key] if "string" in types_of(part, root)]
            if key == "oneOf" and len(some) > 1 and not all(_is_listed(part) for part in some):
                raise ValueError("'oneOf' with several kinds of strings is not supported")
            parts.append("(" + " | ".join(string_expression(part, root, lexeme, depth + 1) for part in some) + ")")
    parts += [string_expression(part, root, lexeme, depth + 1) for part in schema.get("allOf") or ()]
    return "(" + " & ".join(parts or [lexeme("(?s:.*)")]) + ")"


def _regexes(schema: Mapping[str, Any]) -> list[str]:
    found = []
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(listed, list):
        found.append("|".join(_literal(value) for value in listed if isinstance(value, str)))
    least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
    if least or most is not None:
        found.append(f"(?s:.{{{least},{'' if most is None else int(most)}}})")
    if "pattern" in schema:
        found.append(_anchored(schema["pattern"]))
    if schema.get("format") in _FORMATS:
        found.append(_FORMATS[schema["format"]])
    elif format_pattern(schema.get("format", "")) is not None:
        raise ValueError(f"the format {schema['format']!r} is not supported")
    return found


def _literal(text: str) -> str:
    return "".join(mark if mark.isalnum() else f"\\x{{{ord(mark):x}}}" for mark in text)


def _anchored(pattern: str) -> str:
    """A pattern as a regular expression for the whole string."""
    begin, end = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith(r"\$")
    body = pattern[begin : len(pattern) - end]
    # Escapes and character classes aside, anchors may stand only at the ends, and there for all alternatives.
    plain = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]])*\]", "", body)
    outermost = plain
    while (shorter := re.sub(r"\([^()]*\)", "", outermost)) != outermost:
        outermost = shorter
    refers_back = re.search(r"\\[1-9]|\\k<", body)
    if refers_back or re.search(r"[\^$]|\(\?[=!<]|\\b", plain) or ((begin or end) and "|" in outermost):
        raise ValueError(f"the pattern {pattern[:80]!r} is not supported")
    return ("" if begin else "(?s:.*)") + f"({body})" + ("" if end else "(?s:.*)")


def _is_listed(schema: object) -> bool:
    return isinstance(schema, Mapping) and bool(schema.keys() & {"const", "enum"})


def _type_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    kinds = {str: "string", int: "number", float: "number", dict: "object", list: "array"}
    return kinds.get(type(value), "null")


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> object:
    """What a reference to a definition refers to; an empty schema if there is none."""
    found: Any = root
    for key in str(schema["$ref"]).removeprefix("#/").split("/"):
        found = found.get(key.replace("~1", "/").replace("~0", "~"), {}) if isinstance(found, Mapping) else {}
    return found
