"""litellm, as a library in front of an OpenAI-compatible server."""

import json
from collections.abc import Callable
from typing import Any

import litellm
import pytest

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
def options(served: Served) -> dict[str, Any]:
    return {
        "model": f"openai/{served.model}",
        "api_base": served.url,
        "api_key": served.key,
        "num_retries": 0,
        "temperature": 0,
    }


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_a_chat_and_its_stream(options: dict[str, Any], ask: Ask) -> None:
    asked = {**options, "messages": user(QUESTION), "max_tokens": TOKENS}
    answer = litellm.completion(**asked)
    raw = ask(QUESTION, max_tokens=TOKENS)
    assert answer.choices[0].message.content == raw["choices"][0]["message"]["content"]
    assert answer.choices[0].finish_reason == raw["choices"][0]["finish_reason"]
    assert answer.usage.total_tokens == raw["usage"]["total_tokens"]
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    joined = litellm.stream_chunk_builder(chunks, messages=asked["messages"])
    assert joined.choices[0].message.content == answer.choices[0].message.content
    assert joined.choices[0].finish_reason == answer.choices[0].finish_reason
    assert joined.usage.completion_tokens == answer.usage.completion_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_loop(options: dict[str, Any], call_on: dict[str, Any], stream: bool) -> None:
    talk: list[Any] = user(FORECAST)
    asked = {**options, "messages": talk, "tools": [WEATHER], "max_tokens": LIMIT}
    reply = litellm.completion(**asked, tool_choice="required", stream=stream, extra_body=call_on)
    first = litellm.stream_chunk_builder(list(reply)) if stream else reply
    assert first.choices[0].finish_reason == "tool_calls"
    calls = first.choices[0].message.tool_calls
    assert len({call.id for call in calls}) == len(calls) >= 2
    talk.append(first.choices[0].message)
    for call in calls:
        result = report(**Asked.model_validate_json(call.function.arguments).model_dump())
        talk.append({"role": "tool", "tool_call_id": call.id, "content": result})
    last = litellm.completion(**{**asked, "max_tokens": TOKENS}, tool_choice="none")
    assert last.choices[0].message.content
    assert not last.choices[0].message.tool_calls


@pytest.mark.parametrize("response_format", [Forecast, {"type": "json_object"}])
def test_structures(options: dict[str, Any], response_format: Any) -> None:
    answer = litellm.completion(**options, messages=user(FORECAST), response_format=response_format, max_tokens=LIMIT)
    content = answer.choices[0].message.content
    if response_format is Forecast:
        assert Forecast.model_validate_json(content)
    else:
        assert isinstance(json.loads(content), dict)


def test_a_completion(options: dict[str, Any]) -> None:
    asked = {**options, "model": options["model"].replace("openai/", "text-completion-openai/")}
    answer = litellm.text_completion(**asked, prompt="The capital of France is", max_tokens=4)
    assert "Paris" in answer.choices[0].text


def test_a_response(options: dict[str, Any], ask: Ask) -> None:
    answer = litellm.responses(**options, input=QUESTION, max_output_tokens=TOKENS)
    texts = [part.text for item in answer.output for part in item.content]
    assert "".join(texts) == ask(QUESTION, max_tokens=TOKENS)["choices"][0]["message"]["content"]


def test_errors_have_the_classes_of_the_client(options: dict[str, Any]) -> None:
    asked: dict[str, Any] = {**options, "messages": user(QUESTION), "max_tokens": 1}
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**{**asked, "messages": user(TOO_LONG)})
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**{**asked, "api_key": "another"})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**asked, "model": "openai/another"})
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**{**asked, "temperature": 3})
    with pytest.raises(litellm.NotFoundError, match="embeddings"):
        litellm.embedding(
            model=options["model"], input="Paris", api_base=options["api_base"], api_key=options["api_key"]
        )
