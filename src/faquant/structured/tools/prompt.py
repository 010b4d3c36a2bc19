"""Conversations with tools, as chat templates want them; and for templates that know of none, in words of ours."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

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
_RESULTS_END = "\nNow answer my question with that."  # SmolLM2 repeats results that stand in tags


def with_short_ids(messages: Sequence[Message]) -> list[Message]:
    """As Mistral's templates want them: nine letters and digits. Others are replaced, the same wherever they stand."""
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
    """The conversation without tools and calls: the tools stand in the system message, calls in the assistant's text in
    the format hermes, and results in the user's text."""
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
