"""Calls in Python syntax: `weather(city="Paris", days=3)`. Values are JSON, except for True and False."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..json_schema import lark
from .schemas import with_definitions

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORDS = {"True": "true", "False": "false"}


def python_arguments(rule: str, schema: Mapping[str, Any]) -> list[str]:
    """Lark rules for checked parameters, in the schema's order; the first is named `rule`."""
    properties = list(schema.get("properties", {}).items())
    required = schema.get("required", ())
    rules = []
    for number, (name, part) in enumerate(properties):
        value = lark(with_definitions(part, schema))
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


def write_python(arguments: Mapping[str, Any]) -> str:
    """Arguments as Python's keyword arguments."""
    return ", ".join(
        f"{name}={value if isinstance(value, bool) else json.dumps(value, ensure_ascii=False)}"
        for name, value in arguments.items()
    )


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
