"""The body of a request to /v1/responses."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from ...structured.tools.calls import MAX_TOOLS
from ..config import MAX_LOGPROBS, MAX_MESSAGES, MAX_TOOL_CALLS
from .messages import (
    AllowedTools,
    AllowedToolsChoice,
    Body,
    CallId,
    Function,
    FunctionName,
    FunctionTool,
    Name,
    NamedTool,
    Text,
    ToolChoice,
)
from .requests import Conversing, Effort, JsonSchema, ResponseFormat, Verbosity
from .response_items import Item


class ResponseTool(Body):
    """A function that the model may call."""

    ignored = frozenset({"cache_control", "defer_loading", "allowed_callers", "output_schema"})
    type: Literal["function"]
    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseNamedTool(Body):
    """A tool_choice: this tool must be called."""

    type: Literal["function"]
    name: Name


class ResponseAllowedTools(Body):
    """A tool_choice: only these tools may be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ResponseNamedTool], Field(min_length=1, max_length=MAX_TOOL_CALLS)]


class PlainFormat(Body):
    """Any text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(JsonSchema):
    """A schema that the answer must follow."""

    type: Literal["json_schema"]


class TextConfig(Body):
    """The required format of the answer's text."""

    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] = PlainFormat(type="text")
    verbosity: Verbosity | None = None


class Reasoning(Body):
    """How much to think; only a template may use it."""

    effort: Effort | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseRequest(Conversing):
    """POST /v1/responses"""

    input: Text | Annotated[list[Item], Field(max_length=MAX_MESSAGES)]
    instructions: Text | None = None
    previous_response_id: CallId | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)] = Field([])
    tool_choice: Literal["none", "auto", "required"] | ResponseNamedTool | ResponseAllowedTools = "auto"
    text: TextConfig = TextConfig()
    reasoning: Reasoning | None = None
    include: Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=64)] = Field([])
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    background: Literal[False] | None = None
    max_tool_calls: Annotated[int, Field(ge=0)] | None = None
    truncation: Literal["disabled"] | None = None

    @property
    def logprobs(self) -> int | None:
        """As in SamplingParams."""
        return self.top_logprobs if "message.output_text.logprobs" not in self.include else self.top_logprobs or 0

    @property
    def form(self) -> ResponseFormat | None:
        form = self.text.format
        if isinstance(form, PlainFormat):
            return ResponseFormat(type=form.type)
        return ResponseFormat(type="json_schema", json_schema=form)

    @property
    def offered(self) -> Sequence[FunctionTool]:
        functions = (Function(**tool.model_dump(exclude={"type"})) for tool in self.tools)
        return [FunctionTool(type="function", function=function) for function in functions]

    @property
    def choice(self) -> ToolChoice | None:
        choice = self.tool_choice
        if isinstance(choice, ResponseNamedTool):
            return _named(choice)
        if isinstance(choice, ResponseAllowedTools):
            allowed = AllowedTools(mode=choice.mode, tools=[_named(tool) for tool in choice.tools])
            return AllowedToolsChoice(type="allowed_tools", allowed_tools=allowed)
        return choice

    @property
    def hints(self) -> dict[str, Any]:
        effort = None if self.reasoning is None else self.reasoning.effort
        given = {"reasoning_effort": effort, "verbosity": self.text.verbosity}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def names(self) -> dict[str, str]:
        """The names of the fields that it has in place of those of chat completions."""
        return {"max_tokens": "max_output_tokens", "messages": "input", "response_format": "text.format"}


def _named(tool: ResponseNamedTool) -> NamedTool:
    return NamedTool(type="function", function=FunctionName(name=tool.name))
