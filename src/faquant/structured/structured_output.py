"""The required form of an answer: a JSON schema, any JSON object, a regex, a choice, a grammar, tool calls, or either
tool calls or one of the others."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UsageError
from .json_schema import check_text, checked_schema, patterns
from .tools.calls import ToolCalls

MAX_CHOICES = 1024
_FORMS = ("json_schema", "json_object", "regex", "choice", "grammar", "tool_calls")


@dataclass(frozen=True)
class StructuredOutput:
    """The form of an answer. Exactly one field must be given, or one besides tool_calls.

    Attributes:
        json_schema: a JSON schema (draft 2020-12), as a mapping or as JSON text; stored as text.
        json_object: any JSON object.
        regex: a regular expression for the whole answer, in the syntax of Rust's regex crate.
        choice: one of these texts.
        grammar: a grammar in llguidance's Lark dialect.
        tool_calls: tool calls, alone or after free text. With another field, the answer consists of calls or else has
            that form.

    Raises:
        UsageError: no field or too many are given, a value is invalid or too large, or the schema has a keyword that
            would not be enforced.
    """

    json_schema: str | Mapping[str, Any] | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    tool_calls: ToolCalls | None = None

    def __post_init__(self) -> None:
        given = self._given
        if len(given) != 1 and not (len(given) == 2 and self.tool_calls):
            raise UsageError(
                f"Structured output takes exactly one of {', '.join(_FORMS)}, or tool_calls and another, not "
                f"{len(given)} of them."
            )
        for name in given:
            object.__setattr__(self, name, _checked(name, getattr(self, name)))
        if len(given) == 2 and self.tool_calls and (self.tool_calls.forced or not self.tool_calls.tools):
            raise UsageError("Tool calls that are required, or that there are no tools for, exclude another form.")

    @property
    def parts(self) -> "tuple[StructuredOutput, ...]":
        """The forms that the answer may have, which are compiled one by one."""
        if self.tool_calls is None or len(self._given) == 1:
            return (self,)
        return (replace(self, tool_calls=None), StructuredOutput(tool_calls=replace(self.tool_calls, forced=True)))

    @property
    def _given(self) -> list[str]:
        return [name for name in _FORMS if getattr(self, name) not in (None, False)]

    @property
    def is_json(self) -> bool:
        """Whether the answer is JSON or contains JSON."""
        return self.json_object or self.json_schema is not None or self.tool_calls is not None

    @property
    def is_whole(self) -> bool:
        """Whether the answer must have the structure; otherwise it is free text that calls may follow."""
        return self.tool_calls is None or self.tool_calls.forced or len(self.parts) > 1

    def patterns(self) -> list[str]:
        """The regular expressions for the answer or for strings in it."""
        found = [] if self.regex is None else [self.regex]
        if isinstance(self.json_schema, str):
            found += patterns(self.json_schema)
        for tool in self.tool_calls.tools if self.tool_calls else ():
            found += patterns(tool.schema)
        return list(dict.fromkeys(found))


def _checked(name: str, value: Any) -> Any:
    if name == "json_schema":
        return checked_schema(value)
    if name == "choice":
        return _checked_choice(value)
    if name == "json_object" and value is not True:
        raise UsageError("json_object must be true or false.")
    if name == "tool_calls" and not isinstance(value, ToolCalls):
        raise UsageError("tool_calls must be a ToolCalls.")
    if name in ("regex", "grammar"):
        check_text(name, value)
    return value


def _checked_choice(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not 0 < len(value) <= MAX_CHOICES:
        raise UsageError(f"choice must be a list of 1 to {MAX_CHOICES} texts.")
    for text in value:
        check_text("choice", text)
    check_text("choice", "".join(value))
    return tuple(value)
