"""Fields of OpenAI's API beyond the usual ones: older names, hints without effect, and a model's own defaults."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from faquant.sampling.sampler import SamplingParams
from oracles.tiny_server import NAME, BytesEngine, TinyServer, alone, tokenizer

MESSAGES: Any = [{"role": "user", "content": "Weather?"}]
ASKED: Any = {"model": NAME, "messages": MESSAGES, "max_tokens": 200}
SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTIONS: Any = [{"name": "weather", "parameters": SCHEMA}, {"name": "ping"}]
PROMPT = tokenizer().encode_chat(MESSAGES)


def own(**params: Any) -> str:
    return alone(PROMPT, SamplingParams(**{"max_tokens": 12, "ignore_eos": True, **params})).text


def test_functions_are_answered_in_kind(client: openai.OpenAI) -> None:
    asked: Any = {**ASKED, "functions": FUNCTIONS, "function_call": {"name": "weather"}, "seed": 2}
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "function_call"
    assert choice.message.content is None
    assert choice.message.tool_calls is None
    assert choice.message.function_call is not None
    assert choice.message.function_call.name == "weather"
    jsonschema.validate(json.loads(choice.message.function_call.arguments), SCHEMA)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    deltas = [delta for chunk in chunks if (delta := chunk.choices[0].delta.function_call)]
    assert [delta.name for delta in deltas] == ["weather"] + [None] * (len(deltas) - 1)
    assert "".join(delta.arguments or "" for delta in deltas) == choice.message.function_call.arguments
    assert chunks[-1].choices[0].finish_reason == "function_call"
    back = [*MESSAGES, choice.message.model_dump(), {"role": "function", "name": "weather", "content": "sun"}]
    more: Any = {**ASKED, "messages": back, "functions": FUNCTIONS, "function_call": "none", "max_tokens": 5}
    assert client.chat.completions.create(**more).choices[0].finish_reason in ("length", "stop")


def test_hints_are_accepted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "faquant.server")
    prediction: Any = {"type": "content", "content": "x"}
    with TinyServer() as server, server.client() as client:
        answers = [
            client.chat.completions.create(
                **{**ASKED, "max_tokens": 9, "seed": 1},
                reasoning_effort="low",
                verbosity="high",
                prediction=prediction,
                parallel_tool_calls=None,
            )
            for _ in range(2)
        ]
        plain = client.chat.completions.create(**{**ASKED, "max_tokens": 9, "seed": 1})
    assert {answer.choices[0].message.content for answer in answers} == {plain.choices[0].message.content}
    said = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert sorted(said) == [
        f"Requests have the field {name}, which has no effect on this model"
        for name in ("prediction", "reasoning_effort", "verbosity")
    ]


def test_top_p_0_is_greedy(client: openai.OpenAI) -> None:
    for temperature in (0.7, 2):
        got = client.chat.completions.create(
            **{**ASKED, "max_tokens": 12}, top_p=0, temperature=temperature, extra_body={"ignore_eos": True}
        )
        assert got.choices[0].message.content == own(temperature=0)


@pytest.mark.parametrize(
    "parameters", [{"not": {}}, {"type": "string"}, {"properties": {"a": {"format": ["x"]}}}, {"$ref": "#"}]
)
def test_no_schema_matters_if_no_tool_may_be_called(client: openai.OpenAI, parameters: Any) -> None:
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": parameters}}] * 2
    form: Any = {"type": "json_object"}
    asked: Any = {**ASKED, "max_tokens": 9, "tools": tools, "tool_choice": "none"}
    assert client.chat.completions.create(**asked).choices[0].message.tool_calls is None
    got = client.chat.completions.create(**asked, response_format=form).choices[0].message.content
    assert isinstance(json.loads(got or ""), dict)


def test_empty_lists_of_tools_count_as_none(client: openai.OpenAI) -> None:
    asked: Any = {**ASKED, "max_tokens": 9, "seed": 3}
    plain = client.chat.completions.create(**asked).choices[0].message.content
    for empty in ({"tools": []}, {"tools": [], "tool_choice": "auto"}, {"functions": []}):
        assert client.chat.completions.create(**asked, **empty).choices[0].message.content == plain


DEFAULTS = {"temperature": 0.4, "top_k": 7, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.3}


@pytest.fixture(scope="module")
def recommending() -> Iterator[openai.OpenAI]:
    with TinyServer(BytesEngine(pages=40), sampling_defaults=DEFAULTS) as server, server.client() as client:
        yield client


def test_a_models_defaults_replace_openais(recommending: openai.OpenAI) -> None:
    extra = {"ignore_eos": True}
    chat: Any = {"model": NAME, "messages": MESSAGES, "max_tokens": 12, "seed": 5}
    got = recommending.chat.completions.create(**chat, extra_body=extra).choices[0].message.content
    assert got == own(seed=5, **DEFAULTS) != own(seed=5)
    text = recommending.completions.create(model=NAME, prompt=PROMPT, max_tokens=12, seed=5, extra_body=extra)
    assert text.choices[0].text == got
    response = recommending.responses.create(
        model=NAME, input=MESSAGES, max_output_tokens=12, extra_body={**extra, "seed": 5}
    )
    assert response.output_text == got
    assert (response.temperature, response.top_p) == (0.4, 0.8)


def test_what_a_request_gives_counts(recommending: openai.OpenAI) -> None:
    given: Any = {"temperature": 1, "top_p": 1}
    extra = {"top_k": 0, "min_p": 0, "repetition_penalty": 1, "ignore_eos": True}
    chat: Any = {"model": NAME, "messages": MESSAGES, "max_tokens": 12, "seed": 5}
    got = recommending.chat.completions.create(**chat, **given, extra_body=extra).choices[0].message.content
    assert got == own(seed=5)
    half = recommending.chat.completions.create(**chat, temperature=None, top_p=1, extra_body={"ignore_eos": True})
    assert half.choices[0].message.content == own(seed=5, **{**DEFAULTS, "top_p": 1})


def test_a_number_of_tokens_of_0_is_for_completions_only(server: TinyServer) -> None:
    body = {"model": NAME, "messages": MESSAGES, "max_tokens": 0}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body).json()["error"]["param"] == "max_tokens"
    got = httpx.post(f"{server.url}/v1/completions", json={"prompt": "One day", "max_tokens": 0}).json()
    assert got["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]
    assert (got["usage"]["prompt_tokens"], got["usage"]["completion_tokens"]) == (7, 0)
