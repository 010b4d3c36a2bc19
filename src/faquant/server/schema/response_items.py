"""The items of a conversation in /v1/responses, and the messages that they are for chat templates."""

import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter, model_validator

from ..config import MAX_MESSAGES
from .messages import Body, CalledName, CallId, Text, parsed_arguments

_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


class ItemPart(Body):
    """One part of an item."""

    ignored = frozenset({"annotations", "logprobs", "cache_control", "prompt_cache_breakpoint"})
    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text", "refusal"]
    text: Text | None = None
    refusal: Text | None = None

    @model_validator(mode="after")
    def _complete(self) -> "ItemPart":
        given, other = (self.refusal, self.text) if self.type == "refusal" else (self.text, self.refusal)
        if given is None or other is not None:
            field = "refusal" if self.type == "refusal" else "text"
            raise ValueError(f"a part of type {self.type} has the field {field}, and no other text")
        return self

    @property
    def content(self) -> str:
        return self.text or self.refusal or ""


Parts = Annotated[list[ItemPart], Field(max_length=MAX_MESSAGES)]


def _new_id(prefix: str) -> Any:
    """Each item gets an id, because the ids that clients send need not differ."""
    return Field(default_factory=lambda: f"{prefix}_{uuid.uuid4().hex}")


class MessageItem(Body):
    """A message; its type may be missing."""

    ignored = frozenset({"id", "status", "phase"})
    id: str = _new_id("msg")
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Text | Parts


class CallItem(Body):
    """A call of a function, as in an earlier answer."""

    ignored = frozenset({"id", "status", "namespace", "caller"})
    id: str = _new_id("fc")
    type: Literal["function_call"]
    call_id: CallId
    name: CalledName
    arguments: Text


class ResultItem(Body):
    """What a called function has returned."""

    ignored = frozenset({"id", "status", "name", "namespace", "caller"})
    id: str = _new_id("fco")
    type: Literal["function_call_output"]
    call_id: CallId
    output: Text | Parts


class ReasoningItem(Body):
    """What the assistant thought before its next item. `encrypted_content` is another server's."""

    ignored = frozenset({"id", "status", "encrypted_content"})
    id: str = _new_id("rs")
    type: Literal["reasoning"]
    summary: Parts = Field([])
    content: Parts = Field([])


class ReferenceItem(Body):
    """An item of a stored answer, by its id."""

    type: Literal["item_reference"] = "item_reference"
    id: CallId


def _kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if kind is None and isinstance(value, dict) and "role" not in value and "id" in value:
        return "ReferenceItem"
    return _KINDS.get(kind or "message") if isinstance(kind or "message", str) else None


_KINDS = {
    "message": "MessageItem",
    "function_call": "CallItem",
    "function_call_output": "ResultItem",
    "reasoning": "ReasoningItem",
    "item_reference": "ReferenceItem",
}
Item = Annotated[
    Annotated[MessageItem, Tag("MessageItem")]
    | Annotated[CallItem, Tag("CallItem")]
    | Annotated[ResultItem, Tag("ResultItem")]
    | Annotated[ReasoningItem, Tag("ReasoningItem")]
    | Annotated[ReferenceItem, Tag("ReferenceItem")],
    Discriminator(
        _kind,
        custom_error_type="item_type",
        custom_error_message=f"Input should be an item of the type {', '.join(_KINDS)}",
    ),
]
ITEM: TypeAdapter[Any] = TypeAdapter(Item)
KnownItem = MessageItem | CallItem | ResultItem | ReasoningItem


def listed(item: KnownItem) -> dict[str, Any]:
    """An item as /v1/responses returns it."""
    fields = {**item.model_dump(exclude_none=True), "status": "completed"}
    if isinstance(item, MessageItem):
        parts = [ItemPart(type="text", text=item.content)] if isinstance(item.content, str) else item.content
        fields["content"] = [_listed_part(part, item.role) for part in parts]
    return fields


def _listed_part(part: ItemPart, role: str) -> dict[str, Any]:
    if part.type == "refusal":
        return {"type": "refusal", "refusal": part.content}
    if role == "assistant":
        return {"type": "output_text", "text": part.content, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": part.content}


def messages_of(instructions: str | None, items: Sequence[KnownItem]) -> list[dict[str, Any]]:
    """The items as messages for chat templates.

    Reasoning belongs to the assistant's next item, and consecutive calls, also after the assistant's text, are one
    message. Instructions come first, in one message with a system message that the items begin with.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    thoughts = ""
    for item in items:
        if isinstance(item, ReasoningItem):
            thoughts += "".join(part.content for part in item.content or item.summary)
            continue
        if isinstance(item, ResultItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
            continue
        role = "assistant" if isinstance(item, CallItem) else "system" if item.role == "developer" else item.role
        last = messages[-1] if messages else {}
        if isinstance(item, CallItem):
            if last.get("role") != "assistant":
                messages.append({"role": role, "content": ""})
            function = {"name": item.name, "arguments": parsed_arguments(item.arguments)}
            call = {"id": item.call_id, "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        elif role == "system" and len(messages) == 1 and last.get("role") == "system":
            last["content"] += f"\n\n{_text(item.content)}"
        else:
            messages.append({"role": role, "content": _text(item.content)})
        if role == "assistant" and thoughts:
            thoughts = messages[-1].get("reasoning", "") + thoughts
            messages[-1] |= {"reasoning": thoughts, "reasoning_content": thoughts}
            thoughts = ""
    return messages


def _text(content: str | list[ItemPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.content for part in content)
