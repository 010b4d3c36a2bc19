"""The tools that an answer may or must call, and the grammar of the calls."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import UsageError
from ..json_schema import MAX_BYTES, CompiledSchema, compile_schema
from .formats import FORMATS, CallFormat
from .pythonic import check_parameters, python_arguments

MAX_TOOLS = 128
MAX_CALLS = 16
"""Maximum calls per answer: a weak model would repeat calls up to the token limit."""

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
        name: 1 to 64 letters, digits, _ or -.
        parameters: the JSON schema of the arguments, of type object, as a mapping or as JSON text; stored as text.
            None: no arguments.
        strict: refuse parameters that the grammar cannot fully enforce; `compiled.unenforced` lists them otherwise.
        compiled: `parameters`, compiled.

    Raises:
        UsageError: the name is invalid, or the schema is not of type object or cannot be enforced.
    """

    name: str
    parameters: str | Mapping[str, Any] | None = None
    strict: bool = False
    compiled: CompiledSchema = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise UsageError(f"A tool's name must be 1 to 64 letters, digits, _ or -, not {str(self.name)[:80]!r}.")
        where = f"parameters of the tool {self.name}"
        value = _NO_ARGUMENTS if self.parameters is None else self.parameters
        compiled = compile_schema(value, where, self.strict)
        schema = json.loads(compiled.text)
        if "type" not in schema:
            compiled = compile_schema({**schema, "type": "object"}, where, self.strict)
        elif schema["type"] != "object":
            raise UsageError(f"The {where} must be a schema of type object.")
        object.__setattr__(self, "parameters", compiled.text)
        object.__setattr__(self, "compiled", compiled)

    @property
    def schema(self) -> str:
        """`parameters` as JSON text."""
        return str(self.parameters)


@dataclass(frozen=True)
class ToolCalls:
    """The tools that an answer may call, and how.

    Attributes:
        tools: if empty, the answer must not contain calls.
        format: a key of FORMATS.
        forced: whether the answer consists of calls only; otherwise it is free text that calls may follow.
        parallel: whether several calls are allowed, if the format supports that.

    Raises:
        UsageError: there are too many tools, two with the same name, one that the format cannot express, or the schemas
            are too large.
    """

    tools: tuple[Tool, ...]
    format: str
    forced: bool = False
    parallel: bool = True

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"The format of tool calls must be one of {', '.join(FORMATS)}.")
        names = [tool.name for tool in self.tools]
        if len(names) > MAX_TOOLS or (self.forced and not names):
            raise UsageError(f"There must be 1 to {MAX_TOOLS} tools, not {len(names)}.")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UsageError(f"There are two tools named {twice[0]}.")
        if sum(len(tool.schema.encode()) for tool in self.tools) > MAX_BYTES:
            raise UsageError(f"The parameters of all tools together must have at most {MAX_BYTES} bytes.")
        if self.style.arguments is None:
            for tool in self.tools:
                check_parameters(tool.name, json.loads(tool.schema))

    def only(self, names: Iterable[str]) -> "ToolCalls":
        """Restrict the calls to the tools with these names. Raises: UsageError: there is no such tool."""
        given = {tool.name: tool for tool in self.tools}
        names = list(dict.fromkeys(names))
        unknown = [name for name in names if name not in given]
        if unknown:
            raise UsageError(f"tool_choice names {unknown[0]}, which is not among the tools.", "tool_choice")
        return replace(self, tools=tuple(given[name] for name in names))

    @property
    def style(self) -> CallFormat:
        return FORMATS[self.format]

    @property
    def tag(self) -> str | None:
        """The text that a forced answer begins with."""
        return self.style.tag if self.forced and not self.style.has_bare else None

    def beginnings(self) -> list[str]:
        """The possible beginnings of calls after the tag, one text per tool."""
        return [self.style.before + self.style.head(tool.name) for tool in self.tools]

    def grammar(self, tag: str) -> str:
        """The grammar of the calls in llguidance's Lark dialect; unless forced, of the text after the tag.

        tag: the grammar symbol for the tag.
        """
        style = self.style

        def text(value: str) -> str:
            parts = value.split(style.tag) if style.tag else [value]
            return f" {tag} ".join(json.dumps(part) if part else "" for part in parts)

        opening = tag if self.tag else ""
        before = text(style.before.lstrip(" "))
        if style.before.startswith(" "):  # Mistral Nemo writes none
            before = f'" "? {before}'
        more = f"({text(style.between)} call){{0,{MAX_CALLS - 1}}}" if self.parallel and style.between else ""
        rules = [f"start: {opening} {before} call {more} {text(style.after)}"]
        rules.append("call: " + " | ".join(f"call_{number}" for number in range(len(self.tools))))
        for number, tool in enumerate(self.tools):
            name, schema = f"arguments_{number}", json.loads(tool.schema)
            rules.append(f"call_{number}: {text(style.head(tool.name))} {name} {text(style.tail)}")
            if style.arguments is None:
                rules += python_arguments(name, schema)
            else:
                rules.append(f"{name}: " + ('"{}"' if schema == _NO_ARGUMENTS else tool.compiled.lark))
        return "\n".join(rules)
