"""Calls in Python syntax: `weather(city="Paris", days=3)`. Values are JSON, except for True and False."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import UsageError
from ..json_schema import lark

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEFINITIONS = ("$defs", "definitions")
_WRITABLE = {"type", "properties", "required", "additionalProperties", "title", "description", "$schema", *_DEFINITIONS}
_WORDS = {"True": "true", "False": "false"}


def check_parameters(tool: str, schema: Mapping[str, Any]) -> None:
    """Raises: UsageError: keyword arguments cannot express the parameters."""
    properties = schema.get("properties", {})
    unknown = [key for key in schema if key not in _WRITABLE and not key.startswith("x-")]
    unknown += [name for name in (tool, *properties) if not _NAME.fullmatch(name)]
    unknown += [name for name in schema.get("required", ()) if name not in properties]
    unknown += [ref for ref in _references(schema) if not ref.startswith(("#/$defs/", "#/definitions/"))]
    if unknown:
        raise UsageError(
            f"The tool {tool} cannot be called in the format pythonic because of {str(unknown[0])[:80]!r}: names must "
            "be Python identifiers, parameters plain properties, and references to $defs or definitions."
        )


def _references(value: object) -> Iterator[str]:
    """Yield each `$ref`, except for properties with this name."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def python_arguments(rule: str, schema: Mapping[str, Any]) -> list[str]:
    """Lark rules for checked parameters, in the schema's order; the first is named `rule`."""
    shared = {key: schema[key] for key in _DEFINITIONS if key in schema}
    properties = list(schema.get("properties", {}).items())
    required = schema.get("required", ())
    rules = []
    for number, (name, part) in enumerate(properties):
        value = lark({**part, **shared} if isinstance(part, dict) else shared if part else {"enum": []})
        words = ' | "True" | "False"' if isinstance(part, dict) and part.keys() >= {"type"} and _is_flag(part) else ""
        rules.append(f'{rule}_v{number}: "{name}=" {rule}_j{number}')
        rules.append(f"{rule}_j{number}: {rule}_k{number}{words}")
        rules.append(f"{rule}_k{number}: {value}")
        # n: the arguments from this property on; m: the same after another argument.
        optional = name not in required
        here = f"{rule}_v{number} {rule}_m{number + 1}"
        rules.append(f"{rule}_n{number}: {here}" + (f" | {rule}_n{number + 1}" if optional else ""))
        rules.append(f'{rule}_m{number}: ", " {here}' + (f" | {rule}_m{number + 1}" if optional else ""))
    last = len(properties)
    return [f"{rule}: {rule}_n0", *rules, f'{rule}_n{last}: ""', f'{rule}_m{last}: ""']


def _is_flag(schema: Mapping[str, Any]) -> bool:
    return schema["type"] == "boolean" and not schema.keys() & {"enum", "const"}


class PythonArguments:
    """Converts Python arguments to a JSON object, piece by piece."""

    def __init__(self) -> None:
        self._depth = 0
        self._begun = self._in_string = self._escaped = self._in_value = False
        self._word = ""
        self.ended = False

    def push(self, text: str) -> tuple[str, str]:
        """The next part of the JSON object, and the part of `text` after the arguments' end."""
        written = [] if self._begun else ["{"]
        self._begun = True
        for place, mark in enumerate(text):
            written += self._next(mark)
            if self.ended:
                return "".join(written), text[place + 1 :]
        return "".join(written), ""

    def _next(self, mark: str) -> Iterator[str]:
        if self._in_string:
            yield mark
            self._in_string = self._escaped or mark != '"'
            self._escaped = mark == "\\" and not self._escaped
        elif not self._in_value:
            yield from self._name(mark)
        elif mark.isalpha():
            self._word += mark  # converted when it is complete
        else:
            yield _WORDS.get(self._word, self._word)
            self._word = ""
            yield from self._mark(mark)

    def _name(self, mark: str) -> Iterator[str]:
        if mark == ")":
            self.ended = True
            yield "}"
        elif mark == "=":
            yield f'"{self._word}": '
            self._word, self._in_value = "", True
        elif mark not in ", ":
            self._word += mark

    def _mark(self, mark: str) -> Iterator[str]:
        if not self._depth and mark in ",)":
            self._in_value = False
            yield ", " if mark == "," else "}"
            self.ended = mark == ")"
        else:
            self._depth += (mark in "[{") - (mark in "]}")
            self._in_string = mark == '"'
            yield mark
