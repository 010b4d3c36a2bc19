"""The official client's Responses API."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from clients.weather import FORECAST, LIMIT, QUESTION, TOKENS, TOO_LONG, WEATHER, Asked, Forecast, Served, report

pytestmark = pytest.mark.clients

Ask = Callable[..., dict[str, Any]]
TOOL = {"type": "function", **WEATHER["function"]}


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=served.url, api_key=served.key, max_retries=0) as client:
        yield client


def test_a_response(client: OpenAI, served: Served, ask: Ask) -> None:
    answer = client.responses.create(model=served.model, input=QUESTION, max_output_tokens=TOKENS, temperature=0)
    raw = ask(QUESTION, max_tokens=TOKENS)
    assert answer.output_text == raw["choices"][0]["message"]["content"]
    assert answer.usage.output_tokens == raw["usage"]["completion_tokens"]
    is_whole = raw["choices"][0]["finish_reason"] == "stop"
    assert answer.status == ("completed" if is_whole else "incomplete")
    assert is_whole or answer.incomplete_details.reason == "max_output_tokens"


def test_a_stream_joins_to_the_response(client: OpenAI, served: Served, ask: Ask) -> None:
    with client.responses.stream(model=served.model, input=QUESTION, max_output_tokens=TOKENS, temperature=0) as stream:
        events = list(stream)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == ask(QUESTION, max_tokens=TOKENS)["choices"][0]["message"]["content"]
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert events[-1].response.output_text == text
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))


def test_an_agent_loop(client: OpenAI, served: Served, ask: Ask) -> None:
    """The items of an answer go back as input, and by the id of the answer."""
    first = client.responses.create(
        model=served.model,
        instructions="Use the tools.",
        input=FORECAST,
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=LIMIT,
        temperature=0,
    )
    (call,) = [item for item in first.output if item.type == "function_call"]
    result = report(**Asked.model_validate_json(call.arguments).model_dump())
    output = {"type": "function_call_output", "call_id": call.call_id, "output": result}
    rest: dict[str, Any] = {
        "model": served.model,
        "instructions": "Use the tools.",
        "tools": [TOOL],
        "tool_choice": "none",
        "max_output_tokens": TOKENS,
        "temperature": 0,
    }
    talk = [{"role": "user", "content": FORECAST}, *first.output, output]
    whole = client.responses.create(**rest, input=talk)
    continued = client.responses.create(**rest, input=[output], previous_response_id=first.id)
    assert whole.output_text == continued.output_text != ""
    question = ask(FORECAST, max_tokens=1)["usage"]["prompt_tokens"]
    assert whole.usage.input_tokens == continued.usage.input_tokens > question + first.usage.output_tokens


def test_calls_are_streamed(client: OpenAI, served: Served) -> None:
    with client.responses.stream(
        model=served.model,
        input=FORECAST,
        tools=[openai.pydantic_function_tool(Asked, name="weather")],
        tool_choice="required",
        max_output_tokens=LIMIT,
        temperature=0,
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    call = next(item for item in final.output if item.type == "function_call")
    assert isinstance(call.parsed_arguments, Asked)
    deltas = [event for event in events if event.type == "response.function_call_arguments.delta"]
    joined = "".join(event.delta for event in deltas if event.item_id == call.id)
    assert json.loads(joined) == json.loads(call.arguments)


def test_a_structure_is_parsed(client: OpenAI, served: Served) -> None:
    asked: dict[str, Any] = {
        "model": served.model,
        "input": FORECAST,
        "text_format": Forecast,
        "max_output_tokens": LIMIT,
        "temperature": 0,
    }
    found = client.responses.parse(**asked).output_parsed
    assert isinstance(found, Forecast)
    with client.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_parsed == found


def test_errors_have_the_classes_of_the_client(client: OpenAI, served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as long:
        client.responses.create(model=served.model, input=TOO_LONG)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises((openai.NotFoundError, openai.BadRequestError), match="resp_"):
        client.responses.create(model=served.model, input=QUESTION, previous_response_id="resp_0")
