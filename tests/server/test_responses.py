"""/v1/responses, judged by OpenAI's own client."""

import asyncio
import json
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel

from faquant.errors import FaquantError
from faquant.sampling.sampler import SamplingParams
from faquant.server.schema.response_items import ITEM, messages_of
from oracles.tiny_server import NAME, BytesEngine, TinyServer, alone, tokenizer

EXTRA: Any = {"extra_body": {"ignore_eos": True, "seed": 3}}
ASKED: Any = {"model": NAME, "input": "Hello", "max_output_tokens": 24, **EXTRA}
SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
PING: Any = {"type": "function", "name": "ping", "parameters": None, "strict": None}
CALLING: Any = {"model": NAME, "input": "Weather?", "max_output_tokens": 300, "tools": [WEATHER, PING]}


def own(messages: Any, **params: Any) -> str:
    wanted = SamplingParams(**{"seed": 3, "ignore_eos": True, "max_tokens": 24, **params})
    return alone(tokenizer().encode_chat(messages), wanted).text


def seen(*items: Any, instructions: str | None = None) -> list[dict[str, Any]]:
    return messages_of(instructions, [ITEM.validate_python(item) for item in items])


def test_a_text(client: openai.OpenAI) -> None:
    got = client.responses.create(**ASKED, metadata={"a": "b"}, user="me")
    assert got.output_text == own([{"role": "user", "content": "Hello"}])
    assert (got.status, got.incomplete_details and got.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    (item,) = got.output
    assert item.type == "message"
    assert (item.role, item.status) == ("assistant", "incomplete")
    assert (got.object, got.model, got.metadata, got.user, got.error) == ("response", NAME, {"a": "b"}, "me", None)
    assert (got.temperature, got.top_p, got.max_output_tokens, got.truncation) == (1, 1, 24, "disabled")
    assert (got.tools, got.tool_choice, got.parallel_tool_calls, got.previous_response_id) == ([], "auto", True, None)
    assert got.usage is not None
    prompt = len(tokenizer().encode_chat([{"role": "user", "content": "Hello"}]))
    assert (got.usage.input_tokens, got.usage.output_tokens, got.usage.total_tokens) == (prompt, 24, prompt + 24)


def test_instructions_and_items_are_a_conversation(client: openai.OpenAI) -> None:
    items: Any = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [
            {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
        ]},
        {"role": "user", "content": "And?"},
    ]  # fmt: skip
    got = client.responses.create(**{**ASKED, "input": items}, instructions="Be short.")
    assert got.instructions == "Be short."
    assert got.output_text == own(
        [
            {"role": "system", "content": "Be short.\n\nBe kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "And?"},
        ]
    )


def test_a_streamed_text_has_all_events_in_order(client: openai.OpenAI) -> None:
    events: list[Any] = list(client.responses.create(**ASKED, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert deltas > 1
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * deltas,
        *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    text = own([{"role": "user", "content": "Hello"}])
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text
    assert events[-4].text == events[-3].part.text == events[-2].item.content[0].text == text
    assert events[0].response.status == events[1].response.status == "in_progress"
    assert events[0].response.output == []
    assert events[2].item.content == []
    assert {event.item_id for event in events[3:-2]} == {events[2].item.id}
    final = events[-1].response
    assert final.output == [events[-2].item]
    assert final.id == events[0].response.id
    assert final.usage.output_tokens == 24
    assert client.responses.retrieve(final.id) == final


def test_the_stream_names_its_events_and_ends_without_done(server: TinyServer) -> None:
    body = {"input": "Hello", "max_output_tokens": 3, "stream": True}
    lines = httpx.post(f"{server.url}/v1/responses", json=body).text.split("\n\n")
    assert lines[-1] == ""
    for event in lines[:-1]:
        name, data = event.split("\n")
        assert json.loads(data.removeprefix("data: "))["type"] == name.removeprefix("event: ")


def test_the_clients_stream_helper(client: openai.OpenAI) -> None:
    asked: Any = {"model": NAME, "input": "Hello", "max_output_tokens": 60, "extra_body": {"seed": 1}}
    form: Any = {"format": {"type": "json_object"}}
    with client.responses.stream(**asked, text=form) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert final.output_text == client.responses.create(**asked, text=form).output_text


def test_logprobs(client: openai.OpenAI) -> None:
    asked: Any = {**ASKED, "include": ["message.output_text.logprobs"], "top_logprobs": 2, "temperature": 0}
    got: Any = client.responses.create(**asked).output[0]
    found = got.content[0].logprobs
    expected = alone(
        tokenizer().encode_chat([{"role": "user", "content": "Hello"}]),
        SamplingParams(temperature=0, ignore_eos=True, max_tokens=24, logprobs=2),
    ).logprobs
    assert [entry.logprob for entry in found] == [logprob for logprob, _ in expected or ()]
    assert all(len(entry.top_logprobs) == 2 for entry in found)
    events: list[Any] = list(client.responses.create(**asked, stream=True))
    streamed = [entry for event in events if event.type == "response.output_text.delta" for entry in event.logprobs]
    assert 0 < len(streamed) <= len(found)
    assert [entry.logprob for entry in streamed] == [entry.logprob for entry in found][: len(streamed)]
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    assert len(done.logprobs) == len(found)


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "weather"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
    ],
)
def test_calls(client: openai.OpenAI, choice: Any) -> None:
    asked: Any = {**CALLING, "tool_choice": choice, "extra_body": {"seed": 2}}
    got = client.responses.create(**asked)
    assert got.status == "completed"
    calls: list[Any] = list(got.output)
    assert calls
    for call in calls:
        assert (call.type, call.status) == ("function_call", "completed")
        jsonschema.validate(json.loads(call.arguments), SCHEMA if call.name == "weather" else {"maxProperties": 0})
        assert choice == "required" or call.name == "weather"
    assert len({call.call_id for call in calls}) == len({call.id for call in calls}) == len(calls)
    events: list[Any] = list(client.responses.create(**asked, stream=True))
    added = [event.item for event in events if event.type == "response.output_item.added"]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [(item.name, item.arguments, item.status) for item in added] == [
        (call.name, "", "in_progress") for call in calls
    ]
    assert [(item.name, item.arguments) for item in done] == [(call.name, call.arguments) for call in calls]
    for number, item in enumerate(done):
        own_events = [event for event in events if getattr(event, "item_id", None) == item.id]
        pieces = [event.delta for event in own_events if event.type == "response.function_call_arguments.delta"]
        assert "".join(pieces) == item.arguments
        assert own_events[-1].type == "response.function_call_arguments.done"
        assert own_events[-1].arguments == item.arguments
        assert {event.output_index for event in own_events} == {number}
    assert events[-1].type == "response.completed"
    assert events[-1].response.output == done


def test_results_of_calls_continue_the_conversation(client: openai.OpenAI) -> None:
    first = client.responses.create(**CALLING, tool_choice="required", extra_body={"seed": 2})
    results: Any = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
        for call in first.output
        if call.type == "function_call"
    ]
    sent: Any = [{"role": "user", "content": "Weather?"}, *first.output, *results]
    asked: Any = {**CALLING, "max_output_tokens": 9, "extra_body": {"seed": 4}}
    whole = client.responses.create(**{**asked, "input": sent})
    continued = client.responses.create(**{**asked, "input": results}, previous_response_id=first.id)
    assert whole.output_text == continued.output_text
    assert whole.usage is not None
    assert continued.usage is not None
    assert whole.usage.input_tokens == continued.usage.input_tokens
    assert continued.previous_response_id == first.id


class Trip(BaseModel):
    city: Literal["Paris", "Rome"]
    days: int


def test_parse(client: openai.OpenAI) -> None:
    got = client.responses.parse(model=NAME, input="Where?", text_format=Trip, max_output_tokens=200)
    assert isinstance(got.output_parsed, Trip)
    with client.responses.stream(model=NAME, input="Where?", text_format=Trip, max_output_tokens=200) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_response().output_parsed, Trip)
    plain = client.responses.create(
        model=NAME, input="x", max_output_tokens=30, text={"format": {"type": "json_object"}}
    )
    assert isinstance(json.loads(plain.output_text), dict)


def test_tools_with_a_format(client: openai.OpenAI) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "trip", "schema": Trip.model_json_schema(), "strict": True}}
    for seed in range(4):
        got = client.responses.create(**CALLING, text=form, extra_body={"seed": seed})
        assert got.status == "completed"
        if got.output[0].type == "message":
            Trip.model_validate_json(got.output_text)


def test_items_as_messages() -> None:
    call: Any = {"type": "function_call", "id": "fc_1", "call_id": "1", "name": "f", "arguments": '{"a": 1}'}
    thought: Any = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [
        {"type": "reasoning_text", "text": "Hm."}
    ]}  # fmt: skip
    result: Any = {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "5"}]}
    history = seen({"role": "user", "content": "x"}, thought, call, {**call, "call_id": "2"}, result)
    assert history == [
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": key, "type": "function", "function": {"name": "f", "arguments": {"a": 1}}} for key in "12"
            ],
            "reasoning": "Hm.",
            "reasoning_content": "Hm.",
        },
        {"role": "tool", "tool_call_id": "1", "content": "5"},
    ]
    said = {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    assert seen(thought, said, thought) == [
        {"role": "assistant", "content": "No.", "reasoning": "Hm.", "reasoning_content": "Hm."}
    ]
    assert seen({"role": "system", "content": "b"}, instructions="a") == [{"role": "system", "content": "a\n\nb"}]
    summary = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Oh."}], "encrypted_content": "x"}
    assert seen(summary, call)[0]["reasoning"] == "Oh."


MESSAGE: Any = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        ({"input": []}, "input", "no items"),
        ({"input": [{"type": "web_search_call"}]}, "input.0", "an item of the type message, function_call"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type", "input_text"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id", "required"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "function"),
        ({"tools": [{**WEATHER, "parameters": {"not": {}}}]}, "tools", "admits no value"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "pong"}}, "tool_choice", "pong"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"not": {}}}}},
            "text.format",
            "admits no value",
        ),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "json_schema"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater"),
        ({"max_output_tokens": 10**6}, "max_output_tokens", "max_output_tokens is 1000000"),
        (
            {"max_output_tokens": 2, "text": {"format": {"type": "json_object"}}, "ignore_eos": True},
            "ignore_eos",
            "end",
        ),
        ({"input": "x" * 5000}, "input", "Input tokens exceed the configured limit"),
        ({"truncation": "auto"}, "truncation", "disabled"),
        ({"background": True}, "background", "False"),
        ({"conversation": "conv_1"}, "conversation", "not supported"),
        ({"prompt": {"id": "x"}}, "prompt", "not supported"),
        ({"n": 2}, "n", "not supported"),
        ({"model": "gpt-4o"}, "model", "does not exist"),
    ],
)
def test_a_refusal_names_the_field(server: TinyServer, more: Any, param: str, said: str) -> None:
    response = httpx.post(f"{server.url}/v1/responses", json={"input": [MESSAGE], **more})
    assert response.status_code in (400, 404)
    error = response.json()["error"]
    assert error["param"] == param
    assert said in error["message"]


def test_hints_and_fields_without_effect(client: openai.OpenAI) -> None:
    got = client.responses.create(
        **ASKED,
        reasoning={"effort": "low", "summary": "auto"},
        text={"verbosity": "low"},
        include=["reasoning.encrypted_content"],
        max_tool_calls=3,
        service_tier="auto",
        prompt_cache_key="x",
        safety_identifier="y",
        truncation="disabled",
        background=False,
    )
    assert got.output_text == own([{"role": "user", "content": "Hello"}])
    assert got.reasoning is not None
    assert got.reasoning.effort == "low"


def test_a_failure_within_a_stream_is_an_event() -> None:
    class Failing(BytesEngine):
        def step(self) -> list[object]:
            outputs = super().step()
            if any(len(request.answer_ids) > 5 for request in self._scheduler.running):
                raise FaquantError("broken")
            return outputs

    with TinyServer(Failing()) as server, server.client() as client:
        events: list[Any] = list(client.responses.create(**ASKED, stream=True))
        assert events[-1].type == "response.failed"
        assert events[-1].response.status == "failed"
        assert "broken" in events[-1].response.error.message
        with pytest.raises(openai.InternalServerError):
            client.responses.create(**ASKED)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(events[-1].response.id)


def test_an_abandoned_stream_frees_everything(server: TinyServer) -> None:
    async def main() -> None:
        async with server.async_client() as client:
            stream = await client.responses.create(**{**ASKED, "max_output_tokens": 2000}, stream=True)
            async for event in stream:
                if event.type == "response.output_text.delta":
                    break
            await stream.close()

    asyncio.run(main())
    server.wait_until_nothing_is_held()
