"""The base class of request bodies; messages, tools and calls of a conversation."""

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...text.chat_template import MAX_DEPTH
from ..config import MAX_MESSAGES, MAX_TEXT, MAX_TOOL_CALLS

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
CallId = Annotated[str, Field(min_length=1, max_length=256)]
CalledName = Annotated[str, Field(min_length=1, max_length=256)]
"""The name in an old call, which another server may have written."""
_ARGUMENTS_DEPTH = 8
"""Levels of a message around the arguments of a call, and some to spare."""
_INVALID = "invalid_json"


class Body(BaseModel):
    """Strict JSON types: no strings for numbers, no NaN. A field that is null counts as missing.

    Attributes:
        ignored: fields that clients send and that have no effect.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
    ignored: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _reduced(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: item for key, item in value.items() if item is not None and key not in cls.ignored}


class TextPart(Body):
    """One part of a message."""

    ignored = frozenset({"annotations", "cache_control"})
    type: Literal["text", "refusal"]
    text: Text | None = None
    refusal: Text | None = None

    @model_validator(mode="after")
    def _complete(self) -> "TextPart":
        other = self.refusal if self.type == "text" else self.text
        if getattr(self, self.type) is None or other is not None:
            raise ValueError(f"a part of type {self.type} has the field {self.type}, and no other text")
        return self

    def for_template(self) -> dict[str, Any]:
        return {"type": "text", "text": getattr(self, self.type)}


class CalledFunction(Body):
    """A called function; `arguments` is a JSON object as text."""

    ignored = frozenset({"parsed_arguments"})
    name: CalledName
    arguments: Text

    def for_template(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": parsed_arguments(self.arguments)}


class CalledTool(Body):
    """A call in an assistant's message, as in an earlier answer."""

    ignored = frozenset({"index", "cache_control", "provider_specific_fields"})
    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": self.function.for_template()}


class Message(Body):
    """One message of a conversation; an assistant's may have all that an answer of this or another server has."""

    ignored = frozenset(
        {
            *("annotations", "cache_control", "parsed", "provider_specific_fields"),
            *("reasoning_details", "thinking_blocks"),
        }
    )
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[CalledTool], Field(max_length=MAX_TOOL_CALLS)] | None = None
    function_call: CalledFunction | None = None
    tool_call_id: CallId | None = None
    refusal: Text | None = None
    reasoning: Text | None = None
    reasoning_content: Text | None = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"content is missing in a message with role {self.role}")
        for field in ("tool_calls", "function_call", "refusal", "reasoning", "reasoning_content"):
            if getattr(self, field) and self.role != "assistant":
                raise ValueError(f"{field} is only allowed in messages with role assistant")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id is required in messages with role tool, and not allowed in others")
        if self.role == "function" and self.name is None:
            raise ValueError("name is missing in a message with role function")
        return self

    def for_template(self) -> dict[str, Any]:
        """The message for chat templates, in which a developer message is a system message."""
        content = self.refusal or "" if self.content is None else self.content
        plain: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": content if isinstance(content, str) else [part.for_template() for part in content],
        }
        reasoning = self.reasoning or self.reasoning_content
        if reasoning:  # templates read one name or the other
            plain |= {"reasoning": reasoning, "reasoning_content": reasoning}
        if self.tool_calls:
            plain["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return plain | {key: value for key in ("name", "tool_call_id") if (value := getattr(self, key)) is not None}


def for_template(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A conversation for chat templates; calls and results of `functions` become those of tools."""
    plain: list[dict[str, Any]] = []
    last: dict[str | None, str] = {}
    for number, message in enumerate(messages):
        one = message.for_template()
        if message.function_call is not None:
            function = message.function_call.for_template()
            call_id = last[function["name"]] = f"call_{number}"
            one.setdefault("tool_calls", []).append({"id": call_id, "type": "function", "function": function})
        elif message.role == "function":
            one |= {"role": "tool", "tool_call_id": last.get(message.name, f"call_{number}")}
        plain.append(one)
    return plain


def parsed_arguments(text: str) -> dict[str, Any]:
    """The arguments of an old call. If they are not a JSON object, the object holds the text as `invalid_json`, because
    templates expect an object, and the model should see its mistake."""
    try:
        # Calls of functions without parameters often have empty arguments.
        value = json.loads(text or "{}", parse_constant=_refuse, parse_float=_finite)
        value = {} if value is None else value
        json.dumps(value, ensure_ascii=False).encode()  # fails if there are unpaired surrogates
        is_usable = isinstance(value, dict) and _depth(value) <= MAX_DEPTH - _ARGUMENTS_DEPTH
    except (ValueError, RecursionError):
        is_usable = False
    return value if is_usable else {_INVALID: text}


class Function(Body):
    """A function that the model may call. `strict` has no effect: arguments always follow the schema."""

    name: Name
    description: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Body):
    """A tool of a request."""

    ignored = frozenset({"cache_control"})
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


def _depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)
