"""Conversations as clients send them back: what templates see of them."""

import json
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from faquant.server.schema.messages import Message, for_template, parsed_arguments
from faquant.text.chat_template import ChatTemplate
from oracles.tiny_server import NAME, TinyServer, tokenizer

USER: Any = {"role": "user", "content": "Hello"}
# What clients add to the assistant's message that they have received.
ADDED: Any = {
    "refusal": None,
    "annotations": [],
    "audio": None,
    "function_call": None,
    "tool_calls": [],
    "parsed": None,
    "provider_specific_fields": {"a": 1},
    "cache_control": {"type": "ephemeral"},
}
# One that reads reasoning, as those of Qwen3 do, and writes calls like them.
THINKING = ChatTemplate(
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content is string %}({{ m.reasoning_content }}){% endif %}"
    "{{ m.content.strip() }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    "{% for key, value in c.function.arguments.items() %}[{{ key }}={{ value }}]{% endfor %}{% endfor %}{% endfor %}",
    "here",
)


def shown(*messages: Any) -> list[dict[str, Any]]:
    return for_template([Message.model_validate(message) for message in messages])


def test_fields_of_clients_do_not_reach_templates() -> None:
    assert shown({"role": "assistant", "content": "Hi", **ADDED}) == [{"role": "assistant", "content": "Hi"}]
    part = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}
    assert shown({"role": "user", "content": [part]}) == [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}, {"content": []}])
def test_an_assistant_without_text_has_an_empty_one(content: Any) -> None:
    (message,) = shown({"role": "assistant", **content})
    assert THINKING.render([message]) == "<assistant>"
    assert THINKING.render([{"role": "assistant", **content}]) == "<assistant>"


def test_reasoning_reaches_templates_that_read_it_under_both_names() -> None:
    for name in ("reasoning", "reasoning_content"):
        message = {"role": "assistant", "content": "4", name: "2 + 2"}
        assert THINKING.render(shown(message)) == "<assistant>(2 + 2)4"
    with pytest.raises(ValidationError, match="reasoning is only allowed"):
        Message.model_validate({**USER, "reasoning": "x"})


def test_a_refusal_is_text() -> None:
    assert shown({"role": "assistant", "refusal": "No."}) == [{"role": "assistant", "content": "No."}]
    parts = shown({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]})
    assert parts[0]["content"] == [{"type": "text", "text": "No."}]
    with pytest.raises(ValidationError, match="has the field refusal"):
        Message.model_validate({"role": "assistant", "content": [{"type": "refusal", "text": "No."}]})


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        ("null", {}),
        *(
            (text, {"invalid_json": text})
            for text in (
                *("{", "5", "[]", '{"a": NaN}', '{"a": [1e999]}', '{"a": "\\ud800"}', '"{}"'),
                *("[" * 100_000, "9" * 5000, '{"a":' * 60 + "1" + "}" * 60),
            )
        ),
    ],
    ids=range(13),
)
def test_arguments_of_old_calls_are_always_objects(server: TinyServer, text: str, arguments: Any) -> None:
    assert parsed_arguments(text) == arguments
    function = {"name": "default_api:f.g", "arguments": text, "parsed_arguments": None}
    call = {"id": "1", "type": "function", "index": 0, "function": function}
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert shown(*messages)[1]["tool_calls"][0]["function"]["arguments"] == arguments
    if len(text) < 1000:
        body = {"messages": [*messages, {"role": "tool", "tool_call_id": "1", "content": ""}], "max_tokens": 1}
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 200


def test_the_model_sees_the_text_of_invalid_arguments() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": '{"a'}}
    assert THINKING.render(shown({"role": "assistant", "tool_calls": [call]})) == '<assistant>f[invalid_json={"a]'


def test_functions_become_tools() -> None:
    called = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}}
    result = {"role": "function", "name": "f", "content": "5"}
    history = shown(USER, called, result, called, result)
    ids = [message["tool_calls"][0]["id"] for message in (history[1], history[3])]
    assert len(set(ids)) == 2
    assert [(m["role"], m["tool_call_id"]) for m in (history[2], history[4])] == [("tool", ids[0]), ("tool", ids[1])]
    assert history[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": None},
        {"role": "tool", "tool_call_id": "1"},
        {"role": "function", "content": "x"},
        {**USER, "refusal": "x"},
        {**USER, "function_call": {"name": "a", "arguments": "{}"}},
        {"role": "assistant", "audio": {"id": "x"}},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "", "arguments": "{}"}}]},
    ],
)
def test_messages_that_say_nothing_sensible_are_refused(server: TinyServer, message: Any) -> None:
    response = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": [USER, message], "max_tokens": 1})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("messages.1")


def test_a_history_is_the_prompt_that_its_template_writes(server: TinyServer) -> None:
    messages = [USER, {"role": "assistant", "content": "Hi", **ADDED}, {"role": "developer", "content": "Be short."}]
    got = httpx.post(f"{server.url}/tokenize", json={"model": NAME, "messages": messages}).json()
    plain = [USER, {"role": "assistant", "content": "Hi"}, {"role": "system", "content": "Be short."}]
    assert got["tokens"] == tokenizer().encode_chat(plain)
    assert json.dumps(got["count"]) == str(len(got["tokens"]))
