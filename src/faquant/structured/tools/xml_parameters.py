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

from ..json_schema import Property, properties_of

PARAMETER_NAME = re.compile(r"[^>\n]+")
VALUE_END = "\n</parameter>\n"
"""The end of each parameter."""
_HEAD = re.compile(r"<parameter=(?P<name>[^>\n]+)>\n")
_FUNCTION_END = "</function>"
_SPACE = r"[ \t\n\r]*"  # what JSON admits; not \s, which differs between Python and Rust
_NUMBER = r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?"
_WORDS = {"True": "true", "False": "false", "None": "null"}
# What a text looks like, by the kinds that it is read as.
_LOOKS = (
    ({"null"}, f"{_SPACE}(null|None)"),
    ({"true", "false"}, f"{_SPACE}(true|false|True|False)"),
    ({"number"}, _SPACE + _NUMBER),
    ({"object"}, rf"{_SPACE}\{{(?s:.*)"),
    ({"array"}, rf"{_SPACE}\[(?s:.*)"),
)
_ANY, _STRING = Property(), frozenset({"string"})


def xml_arguments(rule: str, tool: str, schema: str) -> list[str]:
    """Lark rules for checked parameters, in the schema's order; the first is named `rule`. schema: JSON text.

    Raises:
        UsageError: a string of the schema has too many patterns.
    """
    required = json.loads(schema).get("required", ())
    rules, written = [], []
    for number, (name, values) in enumerate(_properties(tool, schema).items()):
        if values.strings is None and values.others is None:
            continue
        here = f"{rule}_v{number}"
        written.append(here if name in required else f"{here}?")
        head = json.dumps(f"<parameter={name}>", ensure_ascii=False)
        rules += [f'{here}: {head} "\\n" {here}_any', *_values(here, values)]
    return [f"{rule}: " + (" ".join(written) or '""'), *rules]


def _properties(tool: str, schema: str) -> dict[str, Property]:
    return properties_of(schema, f"parameters of the tool {tool}")


def _values(rule: str, values: Property) -> Iterator[str]:
    """Rules for a value and the end of its parameter; the first is named `rule` + _any."""
    choices = []
    if values.others is not None:
        choices.append(f"{rule}_other {json.dumps(VALUE_END)}")
        words = [word for word, kind in _WORDS.items() if kind in values.kinds]
        yield f"{rule}_other: {rule}_json" + "".join(f' | "{word}"' for word in words)
        yield f"{rule}_json: %lark {{\n{values.others}\n}}"
    if values.strings is not None:
        looks = "|".join(look for kinds, look in _LOOKS if kinds & values.kinds)
        token = f"{rule}_text".upper()
        choices.append(f"{rule}_string")
        yield f"{rule}_string[lazy]: {token}"
        others = [rf"(?s:.*){VALUE_END}(?s:.+)"]  # the first end is the end
        if looks:
            others.append(rf"({looks})(\n(?s:.*))?{VALUE_END}")
        text = f"(({values.strings}) {json.dumps(VALUE_END)})"
        yield f"{token}: {text}" + "".join(f" & ~{_regex(other)}" for other in others)
    yield f"{rule}_any: " + " | ".join(choices)


def _regex(pattern: str) -> str:
    return "/" + pattern.replace("\n", r"\n").replace("/", r"\/") + "/"


def write_xml(arguments: Mapping[str, Any]) -> str:
    """Arguments as XML parameters."""
    written = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in arguments.items()
    }
    return "".join(f"<parameter={name}>\n{value}{VALUE_END}" for name, value in written.items())


class XmlArguments:
    """Converts XML parameters to a JSON object, as ArgumentsReader. schema: that of the arguments, as JSON text."""

    def __init__(self, tool: str, schema: str) -> None:
        self._properties = _properties(tool, schema)
        self._text = ""
        self._kinds: frozenset[str] | None = None  # of the parameter that has begun
        self._is_first = True
        self.ended = False

    def push(self, text: str) -> tuple[str, str]:
        """As ArgumentsReader."""
        self._text += text
        written: list[str] = []
        while True:
            piece = self._between() if self._kinds is None else self._value()
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
        self._kinds = self._properties.get(head["name"], _ANY).kinds
        begin = "{" if self._is_first else ", "
        self._is_first = False
        is_text = self._kinds == _STRING
        return f"{begin}{json.dumps(head['name'], ensure_ascii=False)}: " + ('"' if is_text else "")

    def _value(self) -> str | None:
        end = self._text.find(VALUE_END)
        is_text = self._kinds == _STRING
        if end >= 0:
            value, self._text = self._text[:end], self._text[end + len(VALUE_END) :]
            kinds, self._kinds = self._kinds or frozenset(), None
            return _escaped(value) + '"' if is_text else _as_json(value, kinds)
        if not is_text:
            return None
        place = self._text.rfind("\n")  # the end of the parameter may have begun there
        if place < 0 or not VALUE_END.startswith(self._text[place:]):
            place = len(self._text)
        value, self._text = self._text[:place], self._text[place:]
        return _escaped(value) if value else None


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _as_json(text: str, kinds: frozenset[str]) -> str:
    """The JSON for the text of a value of one of these kinds, among them others than string."""
    if not any(found & kinds and re.fullmatch(look, text) for found, look in _LOOKS):
        return json.dumps(text, ensure_ascii=False)
    return _WORDS.get(text.strip(), text)
