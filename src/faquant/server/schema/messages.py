"""The base class of request bodies; messages, tools and calls of a conversation."""

import json
import math
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..config import MAX_MESSAGES, MAX_TEXT, MAX_TOOL_CALLS

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
CallId = Annotated[str, Field(min_length=1, max_length=256)]


class Body(BaseModel):
    """Strict JSON types: no strings for numbers, no NaN. A field that is null counts as missing."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


class TextPart(Body):
    """One part of a message."""

    type: Literal["text"]
    text: Text


class CalledFunction(Body):
    """A called function; `arguments` is a JSON object as text."""

    name: Name
    arguments: Text

    @model_validator(mode="after")
    def _is_json(self) -> "CalledFunction":
        self.parsed()
        return self

    def parsed(self) -> dict[str, Any]:
        try:
            # Calls of tools without parameters often have empty arguments.
            value = json.loads(self.arguments or "{}", parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ValueError(
                f"the arguments of the call of {self.name} must be a JSON object, as text, with finite numbers"
            )
        return value


class CalledTool(Body):
    """A call in an assistant's message, as in an earlier answer. `index` occurs in streams."""

    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None

    def for_template(self) -> dict[str, Any]:
        function = {"name": self.function.name, "arguments": self.function.parsed()}
        return {"id": self.id, "type": "function", "function": function}


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[CalledTool], Field(min_length=1, max_length=MAX_TOOL_CALLS)] | None = None
    tool_call_id: CallId | None = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> "Message":
        if self.content is None and self.tool_calls is None:
            raise ValueError(f"content is missing in a message with role {self.role}")
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("tool_calls is only allowed in messages with role assistant")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id is required in messages with role tool, and not allowed in others")
        return self

    def for_template(self) -> dict[str, Any]:
        """The message for chat templates, in which a developer message is a system message."""
        plain = self.model_dump(exclude_none=True, exclude={"tool_calls"})
        if self.tool_calls is not None:
            plain["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return {**plain, "role": "system"} if self.role == "developer" else plain


class Function(Body):
    """A function that the model may call. `strict` has no effect: arguments always follow the schema."""

    name: Name
    description: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Body):
    """A tool of a request."""

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True, exclude={"function": {"strict"}})


class FunctionName(Body):
    """The name of a tool."""

    name: Name


class NamedTool(Body):
    """A tool_choice: this tool must be called."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(Body):
    """A subset of the tools."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOL_CALLS)]


class AllowedToolsChoice(Body):
    """A tool_choice: only these tools may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        _refuse(number)
    return value
