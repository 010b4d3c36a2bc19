"""The tools that an answer may or must call, and the grammar of the calls."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import UsageError
from ..json_schema import MAX_BYTES, CompiledSchema, compile_schema
from .arguments import NO_ARGUMENTS, ArgumentsReader, arguments_rules, check_arguments, reader_of, unenforced
from .formats import FORMATS, CallFormat

MAX_TOOLS = 128
MAX_CALLS = 16
"""Maximum calls per answer: a weak model would repeat calls up to the token limit."""

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NOTHING = '""'


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
        value = NO_ARGUMENTS if self.parameters is None else self.parameters
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
        for tool in self.tools:
            check_arguments(self.format, self.style, tool.name, tool.schema)

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
        return self.style.tag if self.forced and self.style.tagged else None

    def unenforced(self) -> tuple[str, ...]:
        """What the grammar of the calls does not enforce, with its places."""
        return tuple(
            f"{part} of the tool {tool.name}" for tool in self.tools for part in unenforced(self.style, tool.compiled)
        )

    def beginnings(self) -> list[str]:
        """The possible beginnings of calls after the tag, one text per tool."""
        return [self.style.before + self.style.head_of(tool.name) for tool in self.tools]

    def reader(self, name: str) -> ArgumentsReader:
        """What reads the arguments of a call of the tool with this name."""
        tool = next((tool for tool in self.tools if tool.name == name), None)
        return reader_of(self.style, name, "{}" if tool is None else tool.schema)

    def grammar(self, symbol: Callable[[str], str]) -> str:
        """The grammar of the calls in llguidance's Lark dialect; unless forced, of the text after the tag.

        After each call, and after white space, the answer may end.

        symbol: the grammar symbol for a marker of the format.
        """
        style, text = self.style, _Text(self.style.all_markers, symbol)
        # Mistral Nemo writes no space before its list.
        before = (
            text.exact(style.before.lstrip(" ")) if style.before[:1] != " " else f'" "? {text.exact(style.before[1:])}'
        )
        opening = symbol(self.tag) if self.tag else ""
        several = self.parallel and style.between is not None
        more = f"({text.loose(style.between or '')} call){{0,{MAX_CALLS - 1}}}" if several else ""
        # The end may always come next, after white space too: what is missing then is only markup.
        after = f"({text.loose(style.after)} | {text.space})" if style.after else text.space if several else ""
        ends = [text.loose(end) for end in (style.end, *(() if self.forced else style.bare_ends)) if end]
        tail = text.loose(style.tail) + (f" ({' | '.join([*ends, text.space])})" if ends else "")
        rules = [
            f"start: {opening} {before} call {more} {after}",
            "call: " + " | ".join(f"call_{number}" for number in range(len(self.tools))),
            f"tail: {tail or _NOTHING}",
            r"SPACE: /[ \t\r\n]{1,8}/",
        ]
        for number, tool in enumerate(self.tools):
            name = f"arguments_{number}"
            rules.append(f"call_{number}: {text.exact(style.head.replace('{name}', tool.name))} {name} tail")
            rules += arguments_rules(style, name, tool.name, tool.compiled)
        if "{id}" in style.head:
            rules.append("ID: /[a-zA-Z0-9]{9}/")
        return "\n".join(rules)


class _Text:
    """Texts as expressions of a grammar, with symbols for the markers in them."""

    space = "SPACE?"

    def __init__(self, markers: Sequence[str], symbol: Callable[[str], str]) -> None:
        self._symbols = {**{marker: symbol(marker) for marker in markers}, "{id}": "ID"}
        self._parts = re.compile("(" + "|".join(map(re.escape, self._symbols)) + ")")

    def exact(self, text: str) -> str:
        parts = filter(None, self._parts.split(text))
        return " ".join(self._symbols.get(part) or json.dumps(part, ensure_ascii=False) for part in parts)

    def loose(self, text: str) -> str:
        """With any white space, or none, before the text and where it has some."""
        parts = [self.exact(part) for part in text.split()]
        last = f" {self.space}" if text[-1:].isspace() else ""
        return f" {self.space} ".join(["", *parts]) + last if parts else ""
