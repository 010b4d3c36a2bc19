"""The required form of an answer: a JSON schema, any JSON object, a regex, a choice, a grammar or tool calls."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import UsageError
from .json_schema import check_text, checked_schema, patterns
from .tools.calls import ToolCalls

MAX_CHOICES = 1024


@dataclass(frozen=True)
class StructuredOutput:
    """The form of an answer. Exactly one field must be given.

    Attributes:
        json_schema: a JSON schema (draft 2020-12), as a mapping or as JSON text; stored as text.
        json_object: any JSON object.
        regex: a regular expression for the whole answer, in the syntax of Rust's regex crate.
        choice: one of these texts.
        grammar: a grammar in llguidance's Lark dialect.
        tool_calls: tool calls, alone or after free text.

    Raises:
        UsageError: no field or several are given, a value is invalid or too large, or the schema has a keyword that
            would not be enforced.
    """

    json_schema: str | Mapping[str, Any] | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    tool_calls: ToolCalls | None = None

    def __post_init__(self) -> None:
        given = [field.name for field in fields(self) if getattr(self, field.name) not in (None, False)]
        if len(given) != 1:
            names = ", ".join(field.name for field in fields(self))
            raise UsageError(f"Structured output takes exactly one of {names}, not {len(given)} of them.")
        value = getattr(self, given[0])
        if given[0] == "json_schema":
            value = checked_schema(value)
        elif given[0] == "json_object":
            if value is not True:
                raise UsageError("json_object must be true or false.")
        elif given[0] == "choice":
            value = _checked_choice(value)
        elif given[0] == "tool_calls":
            if not isinstance(value, ToolCalls):
                raise UsageError("tool_calls must be a ToolCalls.")
        else:
            check_text(given[0], value)
        object.__setattr__(self, given[0], value)

    @property
    def is_json(self) -> bool:
        """Whether the answer is JSON or contains JSON."""
        return self.json_object or self.json_schema is not None or self.tool_calls is not None

    @property
    def is_whole(self) -> bool:
        """Whether the answer must have the structure; otherwise it is free text that calls may follow."""
        return self.tool_calls is None or self.tool_calls.forced

    def patterns(self) -> list[str]:
        """The regular expressions for the answer or for strings in it."""
        found = [] if self.regex is None else [self.regex]
        if isinstance(self.json_schema, str):
            found += patterns(self.json_schema)
        for tool in self.tool_calls.tools if self.tool_calls else ():
            found += patterns(tool.schema)
        return list(dict.fromkeys(found))


def _checked_choice(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not 0 < len(value) <= MAX_CHOICES:
        raise UsageError(f"choice must be a list of 1 to {MAX_CHOICES} texts.")
    for text in value:
        check_text("choice", text)
    check_text("choice", "".join(value))
    return tuple(value)
