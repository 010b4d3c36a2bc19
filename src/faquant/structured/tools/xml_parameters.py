"""Arguments as XML parameters, as Qwen3-Coder writes them: each string as it is, every other value as JSON.

    <parameter=city>
    Paris
    </parameter>
    <parameter=days>
    3
    </parameter>

A parameter that may be a string or something else is read as the latter if it looks like that: `3` is a number. So that
this is always right, the grammar does not admit such texts as strings.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import UsageError
from ..json_schema import lark
from .schemas import with_definitions
from .types import nonstring_part, string_expression, types_of

PARAMETER_NAME = re.compile(r"[^>\n]+")
VALUE_END = "\n</parameter>\n"
"""The end of each parameter."""
_HEAD = re.compile(r"<parameter=(?P<name>[^>\n]+)>\n")
_FUNCTION_END = "</function>"
_NUMBER = r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?"
_WORDS = {"True": "true", "False": "false", "None": "null"}
# What a text looks like, by the type that it is read as.
_LOOKS = {
    "null": "null|None",
    "boolean": "true|false|True|False",
    "number": _NUMBER,
    "object": r"\s*\{(?s:.*)",
    "array": r"\s*\[(?s:.*)",
}


def xml_arguments(rule: str, tool: str, schema: Mapping[str, Any]) -> list[str]:
    """Lark rules for checked parameters, in the schema's order; the first is named `rule`.

    Raises:
        UsageError: a string of the schema has a constraint that cannot be enforced here.
    """
    required, rules, written = schema.get("required", ()), [], []
    for number, (name, part) in enumerate(schema.get("properties", {}).items()):
        here = f"{rule}_v{number}"
        written.append(here if name in required else f"{here}?")
        try:
            values = list(_values(here, with_definitions(part, schema)))
        except ValueError as error:
            raise UsageError(
                f"The parameter {name[:80]!r} of the tool {tool} cannot be enforced in the format of this model's "
                f"calls: {error}."
            ) from None
        rules += [f'{here}: {json.dumps(f"<parameter={name}>", ensure_ascii=False)} "\\n" {here}_any', *values]
    return [f"{rule}: " + (" ".join(written) or '""'), *rules]


def _values(rule: str, schema: Mapping[str, Any]) -> Iterator[str]:
    """Rules for a value and the end of its parameter; the first is named `rule` + _any."""
    types = types_of(schema, schema)
    choices = []
    other = nonstring_part(schema, schema)
    if other is not None:
        choices.append(f"{rule}_other {json.dumps(VALUE_END)}")
        yield f"{rule}_other: {rule}_json" + "".join(f' | "{word}"' for word in _python_words(other))
        yield f"{rule}_json: {lark(other)}"
    if "string" in types:
        looks = "|".join(_LOOKS[kind] for kind in _LOOKS if kind in types)
        token = f"{rule}_text".upper()
        choices.append(f"{rule}_string")
        yield f"{rule}_string[lazy]: {token}"
        text = string_expression(schema, schema, lambda regex: _regex(f"({regex}){VALUE_END}"))
        others = [rf"(?s:.*){VALUE_END}(?s:.+)"]  # the first end is the end
        if looks:
            others.append(rf"({looks})(\n(?s:.*))?{VALUE_END}")
        yield f"{token}: {text}" + "".join(f" & ~{_regex(other)}" for other in others)
    yield f"{rule}_any: " + " | ".join(choices or [f"{rule}_none"])
    if not choices:
        yield f"{rule}_none: {lark({'enum': []})}"


def _python_words(schema: Mapping[str, Any]) -> list[str]:
    """Python's words for the values of a schema without further constraints on them."""
    if schema.keys() & {"enum", "const", "allOf"}:
        return []
    types = types_of(schema, schema)
    return [word for word, kind in (("True", "boolean"), ("False", "boolean"), ("None", "null")) if kind in types]


def _regex(pattern: str) -> str:
    plain = pattern.replace("\n", r"\n")
    return "/" + re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", plain) + "/"


def write_xml(arguments: Mapping[str, Any]) -> str:
    """Arguments as XML parameters."""
    written = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in arguments.items()
    }
    return "".join(f"<parameter={name}>\n{value}{VALUE_END}" for name, value in written.items())


class XmlArguments:
    """Converts XML parameters to a JSON object, as ArgumentsReader. schema: that of the arguments."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._text = ""
        self._types: set[str] | None = None  # of the parameter that has begun
        self._is_first = True
        self.ended = False

    def push(self, text: str) -> tuple[str, str]:
        """As ArgumentsReader."""
        self._text += text
        written: list[str] = []
        while True:
            piece = self._between() if self._types is None else self._value()
            if piece is None:
                return "".join(written), ""
            written.append(piece)
            if self.ended:
                return "".join(written), self._text

    def _between(self) -> str | None:
        head, end = _HEAD.search(self._text), self._text.find(_FUNCTION_END)
        if end >= 0 and (head is None or end < head.start()):
            self._text = self._text[end + len(_FUNCTION_END) :]
            self.ended = True
            return "{}" if self._is_first else "}"
        if head is None:
            return None
        self._text = self._text[head.end() :]
        part = self._schema.get("properties", {}).get(head["name"], True)
        whole = with_definitions(part, self._schema)
        self._types = types_of(whole, whole)
        begin = "{" if self._is_first else ", "
        self._is_first = False
        is_text = self._types == {"string"}
        return f"{begin}{json.dumps(head['name'], ensure_ascii=False)}: " + ('"' if is_text else "")

    def _value(self) -> str | None:
        end = self._text.find(VALUE_END)
        is_text = self._types == {"string"}
        if end >= 0:
            value, self._text = self._text[:end], self._text[end + len(VALUE_END) :]
            types, self._types = self._types or set(), None
            return _escaped(value) + '"' if is_text else _as_json(value, types)
        if not is_text:
            return None
        place = self._text.rfind("\n")  # the end of the parameter may have begun there
        if place < 0 or not VALUE_END.startswith(self._text[place:]):
            place = len(self._text)
        value, self._text = self._text[:place], self._text[place:]
        return _escaped(value) if value else None


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _as_json(text: str, types: set[str]) -> str:
    """The JSON for the text of a value of one of these types, among them others than string."""
    kinds = [kind for kind, look in _LOOKS.items() if kind in types and re.fullmatch(look, text)]
    if not kinds:
        return json.dumps(text, ensure_ascii=False)
    return _WORDS.get(text, text)
