"""The official client, in both major versions that others need: chats, tools, structures, errors."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from clients.weather import (
    FORECAST,
    LIMIT,
    QUESTION,
    TOKENS,
    TOO_LONG,
    WEATHER,
    Asked,
    Forecast,
    Served,
    report,
)

pytestmark = pytest.mark.clients

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=served.url, api_key=served.key, max_retries=0) as client:
        yield client


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_models(client: OpenAI, served: Served) -> None:
    (model,) = client.models.list()
    assert model.id == client.models.retrieve(served.model).id == served.model


def test_a_chat(client: OpenAI, served: Served, ask: Ask) -> None:
    answer = client.chat.completions.create(
        model=served.model, messages=user(QUESTION), max_tokens=TOKENS, temperature=0, n=2
    )
    raw = ask(QUESTION, max_tokens=TOKENS, n=2)
    texts = [choice.message.content for choice in answer.choices]
    assert texts == [choice["message"]["content"] for choice in raw["choices"]]
    assert texts[0] == texts[1]
    assert "Paris" in texts[0]
    assert answer.choices[0].finish_reason == raw["choices"][0]["finish_reason"]
    assert answer.usage.prompt_tokens == raw["usage"]["prompt_tokens"] > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_joins_to_the_answer(client: OpenAI, served: Served, ask: Ask) -> None:
    chunks = list(
        client.chat.completions.create(
            model=served.model,
            messages=user(QUESTION),
            max_tokens=TOKENS,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    raw = ask(QUESTION, max_tokens=TOKENS)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == raw["choices"][0]["message"]["content"]
    assert sum(map(bool, pieces)) > 2
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert [reason for reason in reasons if reason] == [raw["choices"][0]["finish_reason"]]
    assert chunks[-1].usage.completion_tokens == raw["usage"]["completion_tokens"]


def test_calls_are_parsed(client: OpenAI, served: Served) -> None:
    answer = client.chat.completions.parse(
        model=served.model,
        messages=user(FORECAST),
        tools=[openai.pydantic_function_tool(Asked, name="weather")],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        max_tokens=LIMIT,
        temperature=0,
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert isinstance(call.function.parsed_arguments, Asked)
    assert call.function.parsed_arguments == Asked.model_validate_json(call.function.arguments)


def test_parallel_calls(client: OpenAI, served: Served, call_on: dict[str, Any]) -> None:
    asked: dict[str, Any] = {
        "model": served.model,
        "messages": user(FORECAST),
        "tools": [WEATHER],
        "tool_choice": "required",
        "max_tokens": LIMIT,
        "temperature": 0,
        "extra_body": call_on,
    }
    calls = client.chat.completions.create(**asked).choices[0].message.tool_calls
    assert len(calls) >= 2
    assert len({call.id for call in calls}) == len(calls)
    assert all(Asked.model_validate_json(call.function.arguments) for call in calls)
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls
    assert [call.function.arguments for call in streamed] == [call.function.arguments for call in calls]
    (only,) = (
        client.chat.completions.create(**{**asked, "extra_body": {}}, parallel_tool_calls=False)
        .choices[0]
        .message.tool_calls
    )
    assert only.function.arguments == calls[0].function.arguments


def test_an_agent_loop(client: OpenAI, served: Served, ask: Ask, call_on: dict[str, Any]) -> None:
    """Several calls, their results, and an answer in text; the objects of the client go back as they are."""
    talk: list[Any] = user(FORECAST)
    first = client.chat.completions.create(
        model=served.model,
        messages=talk,
        tools=[WEATHER],
        tool_choice="required",
        max_tokens=LIMIT,
        temperature=0,
        extra_body=call_on,
    )
    talk.append(first.choices[0].message)
    for call in first.choices[0].message.tool_calls:
        result = report(**json.loads(call.function.arguments))
        talk.append({"role": "tool", "tool_call_id": call.id, "content": result})
    last = client.chat.completions.create(
        model=served.model, messages=talk, tools=[WEATHER], tool_choice="none", max_tokens=TOKENS, temperature=0
    )
    assert last.choices[0].message.content
    assert not last.choices[0].message.tool_calls
    # The prompt has the calls and their results.
    question = ask(FORECAST, max_tokens=1)["usage"]["prompt_tokens"]
    assert last.usage.prompt_tokens > question + first.usage.completion_tokens
    talk += [last.choices[0].message, *user("And tomorrow?")]
    again = client.chat.completions.create(
        model=served.model, messages=talk, tools=[WEATHER], max_tokens=TOKENS, temperature=0
    )
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_a_structure_is_parsed(client: OpenAI, served: Served) -> None:
    asked: dict[str, Any] = {
        "model": served.model,
        "messages": user(FORECAST),
        "response_format": Forecast,
        "max_tokens": LIMIT,
        "temperature": 0,
    }
    found = client.chat.completions.parse(**asked).choices[0].message.parsed
    assert isinstance(found, Forecast)
    with client.chat.completions.stream(**asked) as stream:
        events = [event.type for event in stream]
        assert stream.get_final_completion().choices[0].message.parsed == found
    assert events.count("content.done") == 1
    assert events.count("content.delta") > 2


def test_json_mode(client: OpenAI, served: Served) -> None:
    answer = client.chat.completions.create(
        model=served.model,
        messages=user("Write a JSON object about Paris."),
        response_format={"type": "json_object"},
        max_tokens=LIMIT,
        temperature=0,
    )
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_a_structure_or_calls(client: OpenAI, served: Served) -> None:
    """With tools and a response format, an answer is calls, or text of that format."""
    asked: dict[str, Any] = {
        "model": served.model,
        "messages": user(FORECAST),
        "tools": [openai.pydantic_function_tool(Asked, name="weather")],
        "response_format": Forecast,
        "max_tokens": LIMIT,
        "temperature": 0,
    }
    called = client.chat.completions.parse(**asked, tool_choice="required").choices[0].message
    assert isinstance(called.tool_calls[0].function.parsed_arguments, Asked)
    either = client.chat.completions.parse(**asked).choices[0].message
    assert bool(either.tool_calls) != isinstance(either.parsed, Forecast)
    told = client.chat.completions.parse(**asked, tool_choice="none").choices[0].message
    assert isinstance(told.parsed, Forecast)


def test_functions_of_old_clients(client: OpenAI, served: Served, ask: Ask) -> None:
    answer = client.chat.completions.create(
        model=served.model,
        messages=user(FORECAST),
        functions=[WEATHER["function"]],
        function_call={"name": "weather"},
        max_tokens=LIMIT,
        temperature=0,
    )
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "function_call"
    result = report(**Asked.model_validate_json(message.function_call.arguments).model_dump())
    last = client.chat.completions.create(
        model=served.model,
        messages=[*user(FORECAST), message, {"role": "function", "name": "weather", "content": result}],
        functions=[WEATHER["function"]],
        function_call="none",
        max_tokens=TOKENS,
        temperature=0,
    )
    assert last.choices[0].message.content
    assert last.usage.prompt_tokens > ask(FORECAST, max_tokens=1)["usage"]["prompt_tokens"]


def test_a_completion(client: OpenAI, served: Served) -> None:
    answer = client.completions.create(
        model=served.model, prompt="The capital of France is", max_tokens=4, temperature=0, logprobs=1
    )
    (choice,) = answer.choices
    assert "Paris" in choice.text
    assert "".join(choice.logprobs.tokens) == choice.text
    echoed = client.completions.create(
        model=served.model, prompt="The capital of France is", max_tokens=1, temperature=0, logprobs=1, echo=True
    )
    assert echoed.choices[0].text.startswith("The capital of France is")
    assert "".join(echoed.choices[0].logprobs.tokens) == echoed.choices[0].text


def test_errors_have_the_classes_of_the_client(client: OpenAI, served: Served) -> None:
    asked: dict[str, Any] = {"messages": user(QUESTION), "max_tokens": 1}
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="another", **asked)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=served.model, messages=user(TOO_LONG))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=served.model, **asked, temperature=3)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.AuthenticationError) as key:
        client.with_options(api_key="another").chat.completions.create(model=served.model, **asked)
    assert key.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError, match="embeddings"):
        client.embeddings.create(model=served.model, input="Paris")
