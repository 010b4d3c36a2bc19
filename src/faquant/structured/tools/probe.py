"""Recognizes how a chat template writes tool calls: renders a call and reads it back.

What a template says about calls does not decide, because templates mention other formats too. Only if a template does
not write calls at all does the example count that it shows to its model.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import FaquantError
from .arguments import reader_of
from .formats import FORMATS, CallFormat

_NAME, _PLACE, _RESULT = "probe_weather", "Uppsala", "snow until evening"
_ARGUMENTS = {"place": _PLACE, "days": 3}
_PARAMETERS = {
    "type": "object",
    "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["place", "days"],
}
_TOOL = {"type": "function", "function": {"name": _NAME, "description": "Tells it.", "parameters": _PARAMETERS}}
_USER = {"role": "user", "content": "Will it rain?"}
_THOUGHT = re.compile(r"<think>.*?</think>\s*$", re.DOTALL)
_SOMETHING = r"[\"'<]?[\w .$-]{1,60}[\"'>]?"
_MORE_KEYS = r'(?:\s*,\s*"[a-z_]+"\s*:\s*"[^"]*")*'


class Render(Protocol):
    """Renders a conversation, as Tokenizer.render_chat."""

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        null_content: bool = False,
    ) -> str: ...


@dataclass(frozen=True)
class TemplateCalls:
    """What a chat template does with tools and calls.

    Attributes:
        format: a key of FORMATS; None: none of them, or the template neither writes nor describes calls.
        takes_tools: whether it describes tools to the model.
        writes_calls: whether it writes the calls in messages.
        writes_results: whether it writes messages with the role tool.
        null_content: whether it writes calls only if the message's content is null, not empty.
        text_arguments: whether it writes calls only if their arguments are JSON text, not an object.
    """

    format: str | None = None
    takes_tools: bool = False
    writes_calls: bool = False
    writes_results: bool = False
    null_content: bool = False
    text_arguments: bool = False


def recognize(render: Render) -> TemplateCalls:
    """Recognize what a template does by rendering conversations with it."""
    plain, described = _try(render, [_USER]), _try(render, [_USER], tools=[_TOOL])
    takes_tools = described is not None and described != plain and _NAME in described
    tools = [_TOOL] if takes_tools else None
    before = described if takes_tools else plain
    if before is None:
        return TemplateCalls()
    header = _header(before, _try(render, [_USER], add_generation_prompt=True, tools=tools) or before)
    found = TemplateCalls(takes_tools=takes_tools)
    for text_arguments, null_content, has_result in _VARIANTS:
        talk = [_USER, _call(text_arguments, null_content), *([_ANSWER] if has_result else [])]
        text = _try(render, talk, tools=tools, null_content=null_content)
        if text is None:
            continue
        begin = _common(text, before)
        turn = text[begin:]
        if _NAME not in turn or _PLACE not in turn:
            continue
        format = _written(text, begin, header)
        if format is not None or not found.writes_calls:
            found = TemplateCalls(format, takes_tools, True, _RESULT in turn, null_content, text_arguments)
        if format is not None:
            return found
    if found.writes_calls:
        return found
    text = _try(render, [_USER, {"role": "assistant", "content": "Wait."}, _ANSWER], tools=tools)
    format = _described(described) if takes_tools and described is not None else None
    return TemplateCalls(format, takes_tools, writes_results=text is not None and _RESULT in text)


_ANSWER = {"role": "tool", "tool_call_id": "a1b2c3d4e", "name": _NAME, "content": _RESULT}
# Whether arguments are text, whether content is null, and whether a result follows. Some templates write a call only if
# it is not the last message, others refuse the role tool.
_VARIANTS = [
    (text_arguments, null_content, has_result)
    for text_arguments in (False, True)
    for null_content in (False, True)
    for has_result in (True, False)
]


def _call(text_arguments: bool, null_content: bool) -> dict[str, Any]:
    arguments = json.dumps(_ARGUMENTS) if text_arguments else _ARGUMENTS
    call = {"id": "a1b2c3d4e", "type": "function", "function": {"name": _NAME, "arguments": arguments}}
    return {"role": "assistant", "content": None if null_content else "", "tool_calls": [call]}


def _try(render: Render, messages: Sequence[Mapping[str, Any]], **options: Any) -> str | None:
    try:
        return render(messages, **{"add_generation_prompt": False, **options})
    except FaquantError:  # the template refuses such messages, or fails on them
        return None


def _common(one: str, other: str) -> int:
    """The length of the common beginning of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _header(before: str, with_prompt: str) -> str:
    """The text that begins a turn of the assistant: what the template appends for it, or the end of the text before."""
    begin = _common(before, with_prompt)
    return with_prompt[begin:].partition("<think>")[0].strip() or before.rstrip()[-8:]


def _written(text: str, begin: int, header: str) -> str | None:
    """The format in which a rendered text has the call; the assistant's turn is after `begin`."""
    for name, style in FORMATS.items():
        for found in _call_pattern(style).finditer(text, begin):
            is_bare = style.tag is None or not found[0].startswith(style.tag)
            if is_bare and not _THOUGHT.sub("", text[: found.start()]).rstrip().endswith(header):
                continue
            reader = reader_of(style, _NAME, json.dumps(_PARAMETERS))
            arguments, rest = reader.push(text[found.end() :])
            if reader.ended and _is_probe(arguments) and _end_pattern(style).match(rest):
                return name
    return None


def _is_probe(arguments: str) -> bool:
    try:
        return bool(json.loads(arguments) == _ARGUMENTS)
    except ValueError:
        return False


def _call_pattern(style: CallFormat) -> re.Pattern[str]:
    tag = re.escape(style.tag or "")
    return re.compile(
        (tag if style.tagged else f"(?:{tag})?")
        + _loose(style.before)
        + _loose(style.head).replace(r"\{name\}", _NAME).replace(r"\{id\}", "[a-zA-Z0-9]{9}")
    )


def _end_pattern(style: CallFormat) -> re.Pattern[str]:
    """The end of the call and of all calls; Mistral's templates add an id to the JSON object."""
    # Readers of other arguments read the tail too.
    tail = _MORE_KEYS + _loose(style.tail) if style.arguments == "json" and style.tail else ""
    # DeepSeek's template forgets the end of all calls if there is only one.
    return re.compile(tail + _loose(style.end) + ("" if style.tagged else _loose(style.after)))


def _loose(text: str) -> str:
    """A pattern for a text with any white space where it has some, and around its first and last mark."""
    return r"\s*" + r"\s*".join(map(re.escape, text.split())) + r"\s*"


def _described(text: str) -> str | None:
    """The format of the example that a template shows to its model."""
    for name, style in FORMATS.items():
        for found in _example_pattern(style).finditer(text):
            if style.tagged or not text[: found.start()].rstrip().endswith((">", "]")):
                return name
    return None


def _example_pattern(style: CallFormat) -> re.Pattern[str]:
    """The beginning of a call whose name may be in words, and without quotes."""
    if style.arguments == "python":
        return re.compile(r"\[\w+\(\w+ ?=")
    begun, _, rest = style.head.partition("{name}")
    begin, end = (
        _loose(begun.removesuffix('"')).replace(r"\{", r"\{+"),
        _loose(rest.removeprefix('"')).replace(r"\{id\}", _SOMETHING),
    )
    tag = re.escape(style.tag) if style.tag and style.tagged else ""
    return re.compile(tag + _loose(style.before) + begin + _SOMETHING + end)
