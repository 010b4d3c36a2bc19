"""The required form of an answer: a JSON schema, any JSON object, a regex, a choice, a grammar, tool calls, or either
tool calls or one of the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import UsageError
from .json_schema import CompiledSchema, check_text, compile_schema
from .regex_example import example
from .repetitions import Repetitions, UniqueArrays
from .tools.calls import ToolCalls
from .tools.parser import FunctionCall, parse

MAX_CHOICES = 1024
_FORMS = ("json_schema", "json_object", "regex", "choice", "grammar", "tool_calls")


@dataclass(frozen=True)
class StructuredOutput:
    """The form of an answer. Besides `strict`, exactly one field must be given, or tool_calls and another.

    Attributes:
        json_schema: a JSON schema (drafts 4 to 2020-12), as a mapping or as JSON text; stored as text.
        json_object: any JSON object.
        regex: a regular expression for the whole answer, in the syntax of Rust's regex crate.
        choice: one of these texts.
        grammar: a grammar in llguidance's Lark dialect.
        tool_calls: tool calls, alone or after free text. With another field, the answer consists of calls or else has
            that form.
        strict: refuse a `json_schema` that the grammar cannot fully enforce. Otherwise `unenforced` lists what is left
            for `problem` to check in the finished answer.
        compiled: `json_schema`, compiled.

    Raises:
        UsageError: no field or too many are given, a value is invalid or too large, or strict is true and the schema
            has a keyword that cannot be enforced.
    """

    json_schema: str | Mapping[str, Any] | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    tool_calls: ToolCalls | None = None
    strict: bool = False
    compiled: CompiledSchema | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = self._given
        if len(given) != 1 and not (len(given) == 2 and self.tool_calls):
            raise UsageError(
                f"Structured output takes exactly one of {', '.join(_FORMS)}, or tool_calls and another, not "
                f"{len(given)} of them."
            )
        if self.json_schema is not None:
            compiled = compile_schema(self.json_schema, strict=self.strict)
            object.__setattr__(self, "compiled", compiled)
            object.__setattr__(self, "json_schema", compiled.text)
        for name in given:
            object.__setattr__(self, name, _checked(name, getattr(self, name)))
        if len(given) == 2 and self.tool_calls and (self.tool_calls.forced or not self.tool_calls.tools):
            raise UsageError("Tool calls that are required, or that there are no tools for, exclude another form.")

    @property
    def is_either(self) -> bool:
        """Whether the answer consists of calls or else has another form."""
        return self.tool_calls is not None and len(self._given) > 1

    @property
    def parts(self) -> "tuple[StructuredOutput, ...]":
        """The forms that the answer may have, which are compiled one by one."""
        if self.tool_calls is None or not self.is_either:
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
    def unenforced(self) -> tuple[str, ...]:
        """What the grammar does not enforce, with its places; empty if every answer follows the schemas."""
        of_schema = () if self.compiled is None else self.compiled.unenforced
        return (*of_schema, *(self.tool_calls.unenforced() if self.tool_calls else ()))

    def problem(self, answer: str) -> str | None:
        """What is wrong with a finished answer to `json_schema`, or with calls in it, and where; None if nothing is."""
        calls: Sequence[FunctionCall] = ()
        if self.tool_calls is not None:
            answer, calls, _ = parse(self.tool_calls, answer, cut=False, is_formed=self.is_either)
            tools = {tool.name: tool.compiled for tool in self.tool_calls.tools}
            for call in calls:
                problem = tools[call.name].problem(call.arguments)
                if problem is not None:
                    return f"{problem} (in the call of {call.name})"
        return None if self.compiled is None or calls else self.compiled.problem(answer)

    @property
    def is_whole(self) -> bool:
        """Whether the answer must have the structure; otherwise it is free text that calls may follow."""
        return self.tool_calls is None or self.tool_calls.forced or self.is_either

    def repetitions(self) -> Repetitions | None:
        """The state before the answer, if the grammar admits repetitions that must be excluded while it is written."""
        if self.tool_calls and self.tool_calls.style.arguments == "xml":
            return None  # not all of its strings are JSON; `unenforced` has them
        schemas = self._schemas()
        paths = [path for schema in schemas for path in schema.unique_paths]
        if not paths and not self.json_object and not any(schema.has_open_names for schema in schemas):
            return None
        if self.tool_calls and self.tool_calls.style.arguments == "python":
            paths = [path[1:] for path in paths]  # names of arguments are not JSON strings
        return Repetitions(UniqueArrays(tuple(dict.fromkeys(paths)), self.tool_calls is None))

    def examples(self) -> list[str]:
        """Short texts for strings that have a pattern, or for the whole answer if it has."""
        found = [example(self.regex)] if self.regex is not None else []
        found += [text for schema in self._schemas() for text in schema.examples]
        return [text for text in dict.fromkeys(found) if text]

    def _schemas(self) -> list[CompiledSchema]:
        tools = self.tool_calls.tools if self.tool_calls else ()
        return [*([] if self.compiled is None else [self.compiled]), *(tool.compiled for tool in tools)]


def _checked(name: str, value: Any) -> Any:
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
