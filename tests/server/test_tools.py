"""Function calling, judged by OpenAI's own client."""

import json
import logging
import re
import time
from collections.abc import Sequence
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from torch import Tensor

from faquant.engine.scheduler import Work
from oracles.tiny_server import NAME, BytesEngine, TinyServer, tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}}
PING: Any = {"type": "function", "function": {"name": "ping", "description": "Answers."}}
USER: Any = {"role": "user", "content": "Weather?"}
ASKED: Any = {"model": NAME, "messages": [USER], "tools": [WEATHER, PING], "max_tokens": 400}
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


def check(message: Any) -> None:
    assert message.content is None
    assert message.tool_calls
    assert len({call.id for call in message.tool_calls}) == len(message.tool_calls)
    for call in message.tool_calls:
        assert call.type == "function"
        assert call.id.startswith("call_")
        schema = SCHEMA if call.function.name == "weather" else {"maxProperties": 0}
        jsonschema.validate(json.loads(call.function.arguments), schema)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "choice",
    [
        "required",
        NAMED,
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}},
    ],
)
def test_forced_calls_are_valid(client: openai.OpenAI, choice: Any, seed: int) -> None:
    choices = client.chat.completions.create(**ASKED, tool_choice=choice, seed=seed, n=2).choices
    assert len(choices) == 2
    for one in choices:
        check(one.message)
        assert one.finish_reason == "tool_calls"
        if choice != "required":
            assert {call.function.name for call in one.message.tool_calls or []} == {"weather"}
        if choice == NAMED:
            assert len(one.message.tool_calls or []) == 1


def test_a_streamed_answer_is_the_same(client: openai.OpenAI) -> None:
    for seed, parallel in ((1, True), (2, False)):
        asked = {**ASKED, "tool_choice": "required", "seed": seed, "parallel_tool_calls": parallel, "n": 2}
        whole = client.chat.completions.create(**asked)
        with client.chat.completions.stream(**asked) as stream:
            streamed = stream.get_final_completion()
        for one, other in zip(whole.choices, streamed.choices, strict=True):
            assert parallel or len(one.message.tool_calls or []) == 1
            assert one.finish_reason == other.finish_reason == "tool_calls"
            assert one.message.content == other.message.content
            assert [(call.function.name, call.function.arguments) for call in one.message.tool_calls or []] == [
                (call.function.name, call.function.arguments) for call in other.message.tool_calls or []
            ]


def test_deltas_begin_with_a_name_and_continue_with_arguments(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**ASKED, tool_choice=NAMED, seed=3, stream=True))
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert len(deltas) > 5
    assert deltas[0].function is not None
    assert deltas[0].function.name == "weather"
    assert all(delta.id is None and delta.index == 0 for delta in deltas[1:])
    assert not any(chunk.choices[0].delta.content for chunk in chunks)


def test_free_answers_without_calls_are_content(client: openai.OpenAI) -> None:
    asked = {**ASKED, "max_tokens": 30, "seed": 1}
    for choice in ("auto", "none"):
        got = client.chat.completions.create(**asked, tool_choice=choice).choices[0]
        assert got.message.content
        assert got.message.tool_calls is None
        chunks = client.chat.completions.create(**asked, tool_choice=choice, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == got.message.content


class LedEngine(BytesEngine):
    """A server whose answers begin with a given text."""

    led = tokenizer().encode("Well. <tool_call>")

    def _run(self, work: Sequence[Work]) -> Tensor:
        logits, row = super()._run(work), 0
        for item in work:
            if item.decodes:
                place = len(item.request.answer_ids)
                if place < len(self.led):
                    logits[row, self.led[place]] += 1000
                row += 1 + len(item.draft)
        return logits


def test_a_call_in_a_free_answer() -> None:
    with TinyServer(LedEngine(pages=40)) as server, server.client() as client:
        for seed in range(3):
            asked = {**ASKED, "seed": seed, "stop": ["{"]}
            whole = client.chat.completions.create(**asked).choices[0]
            with client.chat.completions.stream(**asked) as stream:
                streamed = stream.get_final_completion().choices[0]
            for choice in (whole, streamed):
                assert choice.finish_reason == "tool_calls"
                assert choice.message.content == "Well. "
                check(choice.message.model_copy(update={"content": None}))
        # Too short for a call: it ends before, and nothing of the tag is to be seen.
        for limit in (*range(8, 20), 30):
            short: Any = {**ASKED, "max_tokens": limit, "seed": 1}
            got = client.chat.completions.create(**short).choices[0]
            assert got.finish_reason == "length"
            assert got.message.tool_calls is None
            assert got.message.content == "Well. "
            chunks = list(client.chat.completions.create(**short, stream=True))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Well. "
            assert chunks[-1].choices[0].finish_reason == "length"
        got = client.chat.completions.create(**ASKED, tool_choice="none", seed=1).choices[0]
        assert "<tool_" not in (got.message.content or "")


def test_stop_strings_do_not_break_calls(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(**ASKED, tool_choice=NAMED, seed=1, stop=["{", '"', "c"]).choices[0]
    check(got.message)
    assert got.finish_reason == "tool_calls"


def test_logprobs_are_of_all_tokens(client: openai.OpenAI) -> None:
    asked = {**ASKED, "tool_choice": NAMED, "seed": 1, "logprobs": True}
    got = client.chat.completions.create(**asked)
    logprobs = got.choices[0].logprobs
    assert logprobs is not None
    assert got.usage is not None
    assert len(logprobs.content or []) == got.usage.completion_tokens
    chunks = list(client.chat.completions.create(**asked, stream=True))
    parts = [one for chunk in chunks if (some := chunk.choices[0].logprobs) for one in some.content or []]
    assert parts == logprobs.content


def test_results_are_sent_back(client: openai.OpenAI) -> None:
    message = client.chat.completions.create(**ASKED, tool_choice="required", seed=2).choices[0].message
    results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "sun"} for call in message.tool_calls or []]
    more = [USER, message.model_dump(), *results]
    got = client.chat.completions.create(**{**ASKED, "messages": more, "max_tokens": 9})
    alone = client.chat.completions.create(model=NAME, messages=more, max_tokens=9)
    assert got.usage is not None
    assert alone.usage is not None
    assert got.usage.prompt_tokens > alone.usage.prompt_tokens  # by the tools
    count = {"messages": more, "tools": ASKED["tools"]}
    tokens = httpx.post(f"{client.base_url}".replace("/v1/", "/tokenize"), json=count).json()
    assert tokens["count"] == got.usage.prompt_tokens


def nested(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def tool(**function: Any) -> Any:
    return {"type": "function", "function": function}


CALL: Any = {"id": "call_1", "type": "function", "function": {"name": "ping", "arguments": "{}"}}
REFUSED: list[Any] = [
    {"tools": [tool(name=f"t{number}") for number in range(129)]},
    {"tools": [PING, PING]},
    {"tools": [tool(name="a b")]},
    {"tools": [tool(name="")]},
    {"tools": [tool(name="x" * 65)]},
    {"tools": [{"type": "web_search"}]},
    {"tools": [tool(name="a", parameters={"description": "x" * (1 << 20)})]},
    {"tools": [tool(name="a", parameters=nested(100))]},
    '{"tools": [{"type": "function", "function": {"name": "a", "parameters": '
    + '{"items": ' * 1000
    + "{}"
    + "}" * 1002
    + "]}",
    {"tools": [tool(name="a", parameters={"$ref": "#/x"})]},
    {"tools": [tool(name="a", parameters={"type": "string"})]},
    {"tools": [tool(name="a", parameters={"properties": {"b": {"not": {}}}, "required": ["b"]})]},
    {"tools": [tool(name="a", parameters={"properties": {"b": {"format": ["x"]}}})]},
    {"tools": [tool(name="a", parameters={"properties": 5, "required": 7})]},
    {"tools": [tool(name="a", parameters=[])]},
    {"tools": [PING], "tool_choice": {"type": "function", "function": {"name": "pong"}}},
    {"tools": [PING], "tool_choice": "sometimes"},
    {"tools": [PING], "tool_choice": "required", "max_tokens": 5},
    {"tools": [PING], "tool_choice": "required", "ignore_eos": True},
    {"tool_choice": "required"},
    {"tool_choice": NAMED},
    {"messages": [USER, {"role": "tool", "content": "x"}]},
    {"messages": [USER, {"role": "tool", "tool_call_id": "", "content": "x"}]},
    {"messages": [{**USER, "tool_calls": [CALL]}]},
]


@pytest.mark.parametrize("body", REFUSED, ids=range(len(REFUSED)))
def test_nonsense_is_refused(server: TinyServer, body: Any) -> None:
    wanted = body if isinstance(body, str) else json.dumps({"messages": [USER], "max_tokens": 60, **body})
    response = httpx.post(
        f"{server.url}/v1/chat/completions",
        content=wanted,
        headers={"Content-Type": "application/json"},
        timeout=20,
    )
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]
    assert response.json()["error"]["type"] == "invalid_request_error"


STRUCTURE: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"tools": [PING, PING]}, "tools", "two tools named ping"),
        (
            {"tools": [tool(name="a", parameters={"properties": {"b": {"not": {}}}, "required": ["b"]})]},
            "tools",
            "admits no value",
        ),
        (
            {"tools": [tool(name="a", parameters={"properties": {"b": {"type": "c"}}})]},
            "tools",
            "'type' at /properties/b",
        ),
        ({"tools": [PING], "ignore_eos": True}, "ignore_eos", "response format, or tools"),
        ({"tools": [PING], "tool_choice": "required", "stop_token_ids": [70]}, "stop_token_ids", "format, or tools"),
        ({"tools": [PING], "tool_choice": "required", "max_tokens": 3}, "max_tokens", "too small"),
        ({"tools": [PING], "logit_bias": {"999999": 1}}, "logit_bias", "999999"),
        ({"response_format": STRUCTURE}, "response_format", "admits no value"),
        (
            {"tools": [PING], "tool_choice": {"type": "function", "function": {"nam": "a"}}},
            "tool_choice",
            "tool_choice",
        ),
    ],
)
def test_a_refusal_names_the_field_at_fault(server: TinyServer, body: Any, param: str, message: str) -> None:
    wanted = {"messages": [USER], "max_tokens": 60, **body}
    error = httpx.post(f"{server.url}/v1/chat/completions", json=wanted).json()["error"]
    assert message in error["message"]
    assert error["param"].startswith(param)
    assert not re.search(r"[A-Z][a-z]+[A-Z]|structured_output", f"{error['message']} {error['param']}")


@pytest.mark.parametrize("tools", [[PING, PING], [tool(name="a", parameters={"not": {}})]])
def test_tokenize_refuses_tools_that_chat_refuses(server: TinyServer, tools: Any) -> None:
    response = httpx.post(f"{server.url}/tokenize", json={"messages": [USER], "tools": tools})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools"


@pytest.mark.parametrize("stream", [False, True])
def test_the_log_says_that_tools_were_called(
    client: openai.OpenAI, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "faquant.server")
    got = client.chat.completions.create(**ASKED, tool_choice=NAMED, seed=1, n=2, stream=stream)
    if stream:
        list(got)
    logged: list[logging.LogRecord] = []
    end = time.monotonic() + 10
    while not logged and time.monotonic() < end:  # logged after the answer's last byte
        time.sleep(0.01)
        logged = [record for record in caplog.records if record.name.startswith("faquant.server")]
    (record,) = logged
    assert record.fields["finish"] == "tool_calls"  # type: ignore[attr-defined]


def test_unusual_but_valid_requests(client: openai.OpenAI) -> None:
    asked: Any = {"model": NAME, "messages": [USER], "max_tokens": 400, "seed": 1}
    many = [tool(name=f"t{number}", parameters=SCHEMA) for number in range(12)]
    tree = {
        "type": "object",
        "properties": {"next": {"$ref": "#"}, "value": {"type": "integer"}},
        "required": ["value"],
        "additionalProperties": False,
    }
    for tools, schema in ((many, SCHEMA), ([tool(name="tree", parameters=tree)], tree)):
        got = client.chat.completions.create(**asked, tools=tools, tool_choice="required").choices[0].message
        for call in got.tool_calls or []:
            assert call.type == "function"
            jsonschema.validate(json.loads(call.function.arguments), schema)
    got = client.chat.completions.create(
        **{**asked, "max_tokens": 9}, tools=[PING], tool_choice="none", response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(got.choices[0].message.content or ""), dict)
