"""Encodes conversations with tools and calls for a model, and knows the model's tool-call format.

What the chat template does not write, `Conversation` does: if it has no section for tools, a built-in prompt describes
them, and if it does not write calls or results, they become text of the assistant and of the user.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...errors import UsageError
from ...text.tokenizer import Tokenizer
from .arguments import write_calls
from .formats import FORMATS, CallFormat
from .probe import TemplateCalls, recognize

Message = Mapping[str, Any]
_NINE = re.compile(r"[a-zA-Z0-9]{9}")
_SYSTEM = """You can call these functions, each given as JSON with a schema of its arguments:
<tools>
{tools}
</tools>
To call one, answer with nothing but a JSON object of its name and arguments, between two tags:
{example}
Write one such block for each call. Once a function has returned something, answer in words."""
_EXAMPLE = ("the function's name", {"an argument's name": "its value"})
_RESULTS_END = "\nNow answer my question with that."  # SmolLM2 repeats results that are in tags


class Conversation:
    """Encodes conversations with one tokenizer and its chat template.

    Args:
        format: a key of FORMATS, or auto to recognize it from the template. If the template neither has a section for
            tools nor writes calls in a known format, the built-in prompt is used, which is in the format hermes.

    Attributes:
        format: the format of the model's calls; None if it is unknown.

    Raises:
        UsageError: another format than hermes is given, and the template has no section for tools.
    """

    def __init__(self, tokenizer: Tokenizer, format: str = "auto") -> None:
        self._tokenizer = tokenizer
        found = recognize(tokenizer.render_chat) if tokenizer.has_chat_template else TemplateCalls()
        if not found.takes_tools and found.format is None:
            found = TemplateCalls("hermes" if tokenizer.has_chat_template else None)
        if not found.takes_tools and format not in ("auto", found.format or "hermes"):
            raise UsageError(
                "The chat template has no section for tools. The built-in prompt that replaces it is in the format "
                f"{found.format or 'hermes'}, not {format}."
            )
        self._template = found if format == "auto" else replace(found, format=format)
        self.format = self._template.format

    @property
    def description(self) -> str:
        """A description for people."""
        if self.format is None:
            return "none, the format is unknown; set --tool-call-parser"
        return self.format if self._template.takes_tools else f"{self.format}, with a built-in prompt"

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation. Messages may have `tool_calls`, with arguments as objects, and the role `tool`.

        Raises: as Tokenizer.encode_chat.
        """
        template, style = self._template, FORMATS[self.format or "hermes"]
        if style.short_ids and template.writes_calls:
            messages = with_short_ids(messages)
        if not template.writes_calls:
            messages = with_calls_as_text(messages, style)
        if not template.writes_results:
            messages = with_results_as_text(messages)
        if not template.takes_tools and tools:
            messages, tools = with_tools_described(messages, tools, style), ()
        if template.text_arguments:
            messages = [_with_text_arguments(message) for message in messages]
        if template.null_content:
            messages = [part for message in messages for part in _with_null_content(message)]
        return self._tokenizer.encode_chat(
            messages, add_generation_prompt, tools or None, variables, template.null_content
        )


def with_short_ids(messages: Sequence[Message]) -> list[Message]:
    """Replace call ids by ids of nine letters and digits, as Mistral's templates require; equal ids stay equal."""
    changed: list[Message] = []
    for message in messages:
        one = dict(message)
        if isinstance(one.get("tool_call_id"), str):
            one["tool_call_id"] = _short(one["tool_call_id"])
        if one.get("tool_calls"):
            one["tool_calls"] = [{**call, "id": _short(str(call.get("id", "")))} for call in one["tool_calls"]]
        changed.append(one)
    return changed


def _short(call_id: str) -> str:
    return call_id if _NINE.fullmatch(call_id) else hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:9]


def with_calls_as_text(messages: Sequence[Message], style: CallFormat) -> list[Message]:
    """Append the calls of each message to its content, in a format."""
    changed: list[Message] = []
    for message in messages:
        one = dict(message)
        calls = one.pop("tool_calls", None)
        if calls:
            functions = [call["function"] for call in calls]
            text = write_calls(style, [(function["name"], function["arguments"]) for function in functions])
            content = _text(one.get("content"))
            one["content"] = f"{content}\n{text}" if content else text
        changed.append(one)
    return changed


def with_results_as_text(messages: Sequence[Message]) -> list[Message]:
    """Replace messages with the role tool by text of the user; results in a row become one message."""
    changed: list[dict[str, Any]] = []
    for place, message in enumerate(messages):
        if message["role"] != "tool":
            changed.append(dict(message))
            continue
        content = f"The function returned: {_text(message.get('content'))}"
        if place and messages[place - 1]["role"] == "tool":
            content = f"{changed.pop()['content'].removesuffix(_RESULTS_END)}\n{content}"
        changed.append({"role": "user", "content": content + _RESULTS_END})
    return list(changed)


def with_tools_described(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], style: CallFormat
) -> list[Message]:
    """Describe the tools, and how to call them, in the system message."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    system = _SYSTEM.format(tools=listed, example=write_calls(style, [_EXAMPLE]))
    if messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{_text(messages[0]['content'])}\n\n{system}"}, *messages[1:]]
    return [{"role": "system", "content": system}, *messages]


def _with_text_arguments(message: Message) -> Message:
    """Replace the arguments of calls by their JSON text."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        text = json.dumps(function["arguments"], ensure_ascii=False)
        calls.append({**call, "function": {**function, "arguments": text}})
    return {**message, "tool_calls": calls}


def _with_null_content(message: Message) -> list[Message]:
    """Move the content of a message with calls into a message of its own before it."""
    if not message.get("tool_calls"):
        return [message]
    calls = {**message, "content": None}
    if not _text(message.get("content")):
        return [calls]
    return [{key: value for key, value in message.items() if key != "tool_calls"}, calls]


def _text(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(str(part["text"]) for part in content)
    return str(content or "")
