"""The arguments of calls, in the syntax of a format: their grammar, and their conversion to JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..json_schema import CompiledSchema, compile_schema
from .formats import CallFormat
from .pythonic import IDENTIFIER, PythonArguments, python_arguments, write_python
from .schemas import check_properties, check_references
from .xml_parameters import PARAMETER_NAME, XmlArguments, write_xml, xml_arguments

NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


class ArgumentsReader(Protocol):
    """Converts the arguments of one call to a JSON object, piece by piece. `ended`: whether the object is complete."""

    ended: bool

    def push(self, text: str) -> tuple[str, str]:
        """The next part of the JSON object, and the part of `text` after the end of the arguments."""


def check_arguments(format: str, style: CallFormat, tool: str, schema: str) -> None:
    """Raises: UsageError: the syntax of the format cannot express the arguments of the tool, of this schema."""
    if style.arguments == "python":
        check_properties(format, tool, json.loads(schema), IDENTIFIER, "Python identifiers")
        check_references(format, tool, json.loads(schema))
    elif style.arguments == "xml":
        check_properties(format, tool, json.loads(schema), PARAMETER_NAME, "without > and line breaks")
        xml_arguments("", tool, schema)


def arguments_rules(style: CallFormat, rule: str, tool: str, compiled: CompiledSchema) -> list[str]:
    """Lark rules for the arguments of a tool, which `check_arguments` has accepted; the first is named `rule`."""
    if style.arguments == "python":
        return python_arguments(rule, json.loads(compiled.text))
    if style.arguments == "xml":
        return xml_arguments(rule, tool, compiled.text)
    return [f"{rule}: " + ('"{}"' if json.loads(compiled.text) == NO_ARGUMENTS else compiled.lark)]


def unenforced(style: CallFormat, compiled: CompiledSchema) -> tuple[str, ...]:
    """What the grammar of the arguments does not enforce, with its places."""
    if style.arguments != "xml":
        return compiled.unenforced
    # The parameters come once each. In their values, nothing reads along to exclude repetitions.
    inner = compile_schema({**json.loads(compiled.text), "additionalProperties": False})
    repeats = inner.has_open_names or inner.unique_paths
    return (*compiled.unenforced, *(("names or items that come twice",) if repeats else ()))


def reader_of(style: CallFormat, tool: str, schema: str) -> ArgumentsReader:
    """A reader of the arguments of one call. schema: that of the arguments, as JSON text."""
    if style.arguments == "python":
        return PythonArguments()
    return XmlArguments(tool, schema) if style.arguments == "xml" else JsonArguments()


def write_calls(style: CallFormat, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The text of calls, each given as the tool's name and the arguments."""
    write = {"python": write_python, "xml": write_xml}.get(style.arguments, _write_json)
    written = [style.head_of(name) + write(arguments) + style.tail + style.end for name, arguments in calls]
    tag = style.tag if style.tag and style.tagged else ""
    return tag + style.before + (style.between or "\n").join(written) + style.after


def _write_json(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


class JsonArguments:
    """Reads a JSON object."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        self.ended = False

    def push(self, text: str) -> tuple[str, str]:
        """As ArgumentsReader."""
        for place, mark in enumerate(text):
            if self._in_string:
                self._in_string = self._escaped or mark != '"'
                self._escaped = mark == "\\" and not self._escaped
            elif mark == '"':
                self._in_string = True
            else:
                self._depth += (mark in "[{") - (mark in "]}")
                if mark in "]}" and self._depth == 0:
                    self.ended = True
                    return text[: place + 1], text[place + 1 :]
        return text, ""
