"""Refused requests, as exceptions of OpenAI's client and as error objects."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from oracles.tiny_server import NAME, TinyServer

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
DEEP: Any = json.loads('{"a":' * 100 + "1" + "}" * 100)


@pytest.fixture
def http(server: TinyServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as http:
        yield http


def check_error(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert response.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"max_completion_tokens": 10**6}, "max_completion_tokens"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": DEEP}, "chat_template_kwargs"),
        ({"seed": 2**63}, "seed"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a"),
        ({"logit_bias": dict.fromkeys(map(str, range(1025)), 1)}, "logit_bias"),
        ({"stream": "yes"}, "stream"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"reasoning_effort": "endless"}, "reasoning_effort"),
        ({"functions": [{"name": "f"}], "tools": [{"type": "function", "function": {"name": "f"}}]}, "functions"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call"),
        ({"functions": [{"name": "f", "parameters": {"type": "string"}}]}, "functions"),
        ({"audio": {}}, "audio"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
    ],
)
def test_a_wrong_field_is_named(http: httpx.Client, more: Any, param: str | None) -> None:
    body = {"model": NAME, "messages": MESSAGES, **more}
    error = check_error(http.post("/v1/chat/completions", json=body), 400)
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
        assert param in error["message"] or param in ("chat_template_kwargs", "functions")


@pytest.mark.parametrize(
    "more",
    [
        {"echo": 1},
        {"suffix": "x"},
        {"best_of": 3},
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": ""},
        {"prompt": [99999]},
    ],
)
def test_unsupported_completion_fields(http: httpx.Client, more: Any) -> None:
    error = check_error(http.post("/v1/completions", json={"prompt": "x", **more}), 400)
    assert error["param"].startswith(next(iter(more)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": Infinity}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "x", "seed": 1' + b"0" * 5000 + b"}",
        b'{"prompt": "x", "n": 1.5}',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": ' + b"[" * 100_000 + b"}",
        b'{"prompt": "x", "metadata": ' + b'{"a":' * 150 + b"1" + b"}" * 150 + b', "temperature": 9}',
        b'{"prompt": "x", "\\u0000\\n": 1}',
    ],
)
def test_bodies_that_are_not_requests(http: httpx.Client, body: bytes) -> None:
    check_error(http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"}), 400)


def test_a_body_must_be_declared_as_json(http: httpx.Client) -> None:
    """A web page cannot send this content type without a CORS preflight."""
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        body = json.dumps({"prompt": "x"})
        error = check_error(http.post("/v1/completions", content=body, headers={"Content-Type": kind}), 400)
        assert "application/json" in error["message"]


def test_a_conversation_longer_than_the_context(client: openai.OpenAI, server: TinyServer) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt="x" * (server.service.max_model_len + 1))
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"
    # These words, and no code, tell litellm and LangChain which error it is.
    assert "Input tokens exceed the configured limit" in caught.value.message
    assert "This model's maximum context length is" in caught.value.message


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"messages": [{"role": "user", "content": "x" * 6000}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * ((1 << 20) + 1)}]}, "messages.0.content"),
        ({"messages": MESSAGES, "max_tokens": 10**6}, "max_tokens"),
        ({"messages": MESSAGES, "max_completion_tokens": 10**6}, "max_completion_tokens"),
    ],
)
def test_too_long_requests_have_a_code(http: httpx.Client, more: Any, param: str) -> None:
    error = check_error(http.post("/v1/chat/completions", json=more), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert "maximum context length is" in error["message"] or "prompt is too long" in error["message"]


def test_a_wrong_model_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/embeddings", "no embeddings"),
        ("/v1/moderations", "no moderation"),
        ("/v1/images/generations", "no images"),
        ("/v1/files", "no files"),
        ("/v1/nothing", "does not exist"),
        ("/chat/completions", "base URL must end with /v1, once"),
        ("/v1/v1/chat/completions", "base URL must end with /v1, once"),
    ],
)
def test_unknown_paths_say_what_is_missing(http: httpx.Client, path: str, said: str) -> None:
    error = check_error(http.post(path, json={}), 404)
    assert said in error["message"]
    assert f"POST {path} " in error["message"]
    assert error["code"] == "unknown_url"


def test_openais_client_learns_that_there_are_no_embeddings(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no embeddings"):
        client.embeddings.create(model=NAME, input="x")


def test_unknown_paths_and_methods(http: httpx.Client) -> None:
    check_error(http.get("/v1/nothing"), 404)
    response = http.get("/v1/chat/completions")
    check_error(response, 405)
    assert response.headers["allow"] == "POST"


def test_a_field_that_is_null_counts_as_missing(http: httpx.Client) -> None:
    body = {"model": NAME, "messages": MESSAGES, "max_tokens": 2, "tools": None, "temperature": None, "stop": None}
    assert http.post("/v1/chat/completions", json=body).status_code == 200


def test_a_token_outside_the_vocabulary(http: httpx.Client) -> None:
    error = check_error(http.post("/v1/completions", json={"prompt": [1, 320]}), 400)
    assert "vocabulary" in error["message"]
