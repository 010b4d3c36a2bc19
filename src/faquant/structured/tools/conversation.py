"""Encodes conversations with tools and calls for a model, and knows the model's tool-call format.

If the chat template has no section for tools, a built-in prompt describes them.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import UnsupportedError, UsageError
from ...text.tokenizer import Tokenizer
from .formats import detect

Message = Mapping[str, Any]
_NINE = re.compile(r"[a-zA-Z0-9]{9}")
_SYSTEM = """You can call these functions, each given as JSON with a schema of its arguments:
<tools>
{tools}
</tools>
To call one, answer with nothing but a JSON object of its name and arguments, between two tags:
<tool_call>
{{"name": "the function's name", "arguments": {{"an argument's name": "its value"}}}}
</tool_call>
Write one such block for each call. Once a function has returned something, answer in words."""
_RESULTS_END = "\nNow answer my question with that."  # SmolLM2 repeats results that are in tags


class Conversation:
    """Encodes conversations with one tokenizer and its chat template.

    Args:
        format: a key of FORMATS, or auto to detect it from the template. If the template has no section for tools, the
            built-in prompt is used, which is in the format hermes.

    Raises:
        UsageError: another format than hermes is given, and the template has no section for tools.
    """

    def __init__(self, tokenizer: Tokenizer, format: str = "auto") -> None:
        self._tokenizer = tokenizer
        self._has_tools = True
        try:
            template = tokenizer.tool_template
        except UnsupportedError:  # there are several templates but none for chat; rendering reports that
            template = None
        if template is None:
            self._has_tools = False
            if format not in ("auto", "hermes"):
                raise UsageError(
                    "The chat template has no section for tools. The built-in prompt that replaces it is in the format "
                    f"hermes, not {format}."
                )
            self.format: str | None = "hermes" if tokenizer.has_chat_template else None
        else:
            self.format = detect(template) if format == "auto" else format

    @property
    def description(self) -> str:
        """A description for people."""
        if self.format is None:
            return "none, the format is unknown; set --tool-call-parser"
        return self.format if self._has_tools else f"{self.format}, with a built-in prompt"

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
        if not self._has_tools:
            messages, tools = as_plain_messages(messages, tools), ()
        elif self.format == "mistral":
            messages = with_short_ids(messages)
        return self._tokenizer.encode_chat(messages, add_generation_prompt, tools or None, variables)


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


def as_plain_messages(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Rewrite a conversation for a template without tools.

    The tools are described in the system message; calls become text of the assistant in the format hermes, and results
    become text of the user.
    """
    plain: list[dict[str, Any]] = []
    for message in messages:
        role, content = message["role"], _text(message.get("content"))
        if role == "tool":
            content = f"The function returned: {content}"
            if plain and plain[-1].get("results"):
                content = f"{plain.pop()['content'].removesuffix(_RESULTS_END)}\n{content}"
            plain.append({"role": "user", "content": content + _RESULTS_END, "results": True})
        elif message.get("tool_calls"):
            calls = [_written(call["function"]) for call in message["tool_calls"]]
            plain.append({"role": role, "content": "\n".join([content, *calls] if content else calls)})
        else:
            plain.append(dict(message))
    for message in plain:
        message.pop("results", None)
    if not tools:
        return list(plain)
    system = _SYSTEM.format(tools="\n".join(_json(tool) for tool in tools))
    if plain[0]["role"] == "system":
        return [{**plain[0], "content": f"{_text(plain[0]['content'])}\n\n{system}"}, *plain[1:]]
    return [{"role": "system", "content": system}, *plain]


def _text(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(str(part["text"]) for part in content)
    return str(content or "")


def _written(function: Mapping[str, Any]) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return f"<tool_call>\n{_json(call)}\n</tool_call>"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
