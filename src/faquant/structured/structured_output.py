"""The required form of an answer: a JSON schema, any JSON object, a regex, a choice, a grammar or tool calls."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import UsageError
from .json_schema import CompiledSchema, check_text, compile_schema
from .regex_example import example
from .repetitions import Repetitions, UniqueArrays
from .tools.calls import ToolCalls

MAX_CHOICES = 1024


@dataclass(frozen=True)
class StructuredOutput:
    """The form of an answer. Exactly one field besides `strict` must be given.

    Attributes:
        json_schema: a JSON schema (draft 2020-12), as a mapping or as JSON text; stored as text.
        json_object: any JSON object.
        regex: a regular expression for the whole answer, in the syntax of Rust's regex crate.
        choice: one of these texts.
        grammar: a grammar in llguidance's Lark dialect.
        tool_calls: tool calls, alone or after free text.
        strict: refuse a `json_schema` that the grammar cannot fully enforce. Otherwise `unenforced` lists what is left
            for `problem` to check in the finished answer.
        compiled: `json_schema`, compiled.

    Raises:
        UsageError: no field or several are given, a value is invalid or too large, or strict is true and the schema has
            a keyword that cannot be enforced.
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
        forms = [form.name for form in fields(self) if form.name not in ("strict", "compiled")]
        given = [name for name in forms if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            names = ", ".join(forms)
            raise UsageError(f"Structured output takes exactly one of {names}, not {len(given)} of them.")
        value = getattr(self, given[0])
        if given[0] == "json_schema":
            compiled = compile_schema(value, strict=self.strict)
            object.__setattr__(self, "compiled", compiled)
            value = compiled.text
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
    def unenforced(self) -> tuple[str, ...]:
        """What the grammar does not enforce, with its places; empty if every answer follows the schemas."""
        if self.compiled is not None:
            return self.compiled.unenforced
        tools = self.tool_calls.tools if self.tool_calls else ()
        return tuple(f"{part} of the tool {tool.name}" for tool in tools for part in tool.compiled.unenforced)

    def problem(self, answer: str) -> str | None:
        """What is wrong with a finished answer to `json_schema`, and where; None if nothing is.

        Arguments of tools have their own check, `Tool.compiled.problem`.
        """
        return None if self.compiled is None else self.compiled.problem(answer)

    def repetitions(self) -> Repetitions | None:
        """The state before the answer, if the grammar admits repetitions that must be excluded."""
        schemas = self._schemas()
        paths = [path for schema in schemas for path in schema.unique_paths]
        if not paths and not self.json_object and not any(schema.has_open_names for schema in schemas):
            return None
        if self.tool_calls and self.tool_calls.style.arguments is None:
            paths = [path[1:] for path in paths]  # names of arguments are no JSON
        return Repetitions(UniqueArrays(tuple(dict.fromkeys(paths)), self.tool_calls is None))

    def examples(self) -> list[str]:
        """Short texts for strings that have a pattern, or for the whole answer if it has."""
        found = [example(self.regex)] if self.regex is not None else []
        found += [text for schema in self._schemas() for text in schema.examples]
        return [text for text in dict.fromkeys(found) if text]

    def _schemas(self) -> list[CompiledSchema]:
        tools = self.tool_calls.tools if self.tool_calls else ()
        return [tool.compiled for tool in tools] if self.compiled is None else [self.compiled]


def _checked_choice(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not 0 < len(value) <= MAX_CHOICES:
        raise UsageError(f"choice must be a list of 1 to {MAX_CHOICES} texts.")
    for text in value:
        check_text("choice", text)
    check_text("choice", "".join(value))
    return tuple(value)
