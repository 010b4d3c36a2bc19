"""Hostile and nonsensical requests: an answer or an error object, never a 500, and the next request works."""

import json
import socket
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from oracles.tiny_server import NAME, BytesEngine, TinyServer

NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([-1, 0, 1, 2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, 1e-320]),
)
TEXTS = st.one_of(
    st.text(max_size=40), st.sampled_from(["<|im_end|>", "\x00", "{{ 1 }}", "x" * 5000, "\ufffd", "😀" * 9])
)
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)
ROLES = st.one_of(st.sampled_from(["system", "developer", "user", "assistant", "tool", "wizard", ""]), ANYTHING)
CONTENTS = st.one_of(
    TEXTS,
    st.lists(st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]), "text": TEXTS}), max_size=3),
    ANYTHING,
)
MESSAGES = st.one_of(
    st.lists(st.one_of(st.fixed_dictionaries({"role": ROLES, "content": CONTENTS}), ANYTHING), max_size=4), ANYTHING
)
PROMPTS = st.one_of(TEXTS, st.lists(st.integers(-2, 400), max_size=9), st.lists(TEXTS, max_size=3), ANYTHING)
ITEMS = st.one_of(
    TEXTS,
    MESSAGES,
    st.lists(
        st.fixed_dictionaries(
            {"type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning", "x"])},
            optional={
                "role": ROLES,
                "content": CONTENTS,
                "call_id": TEXTS,
                "name": TEXTS,
                "arguments": TEXTS,
                "output": CONTENTS,
                "summary": CONTENTS,
            },
        ),
        max_size=4,
    ),
)
FIELDS = (
    *("model", "max_tokens", "max_completion_tokens", "n", "temperature", "top_p", "top_k", "min_p", "seed", "stop"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "logprobs", "top_logprobs"),
    *("stream", "stream_options", "response_format", "tools", "tool_choice", "echo", "suffix", "best_of", "user"),
    *("min_tokens", "stop_token_ids", "ignore_eos", "chat_template_kwargs", "metadata", "modalities"),
    *("functions", "function_call", "reasoning_effort", "verbosity", "prediction", "parallel_tool_calls"),
    *("instructions", "previous_response_id", "text", "reasoning", "include", "truncation", "background"),
)
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize")
SENSIBLE: dict[str, Any] = {
    "model": st.just(NAME),
    "max_tokens": st.integers(1, 8),
    "n": st.integers(1, 3),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.001, 1),
    "seed": st.integers(0, 9),
    "stream": st.booleans(),
    "stop": st.one_of(TEXTS, st.lists(TEXTS, max_size=5)),
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}, {"type": "json_schema"}]),
}


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A request with some valid fields and some arbitrary ones."""
    kinds: dict[str, st.SearchStrategy[Any]] = {"messages": MESSAGES, "prompt": PROMPTS, "input": ITEMS}
    kind = draw(st.sampled_from(list(kinds)))
    body = {"max_output_tokens" if kind == "input" else "max_tokens": 4, kind: draw(kinds[kind])}
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=4, unique=True)):
        body[name] = draw(SENSIBLE[name] if name in SENSIBLE and draw(st.booleans()) else ANYTHING)
    return json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


def check(response: httpx.Response) -> None:
    assert response.status_code in (200, 400, 404, 413), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]


def check_next(http: httpx.Client) -> None:
    response = http.post("/v1/completions", json={"prompt": "One day", "max_tokens": 2})
    assert response.status_code == 200


@pytest.fixture(scope="module")
def small() -> Any:
    """A server with a short context, so that answers that fill it are quick."""
    with TinyServer(BytesEngine(pages=16, max_model_len=256), request_timeout=60) as server:
        yield server
        server.wait_until_nothing_is_held()


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(body=bodies(), path=st.sampled_from(PATHS))
def test_any_body_is_answered(small: TinyServer, body: bytes, path: str) -> None:
    with httpx.Client(base_url=small.url, timeout=30) as http:
        check(http.post(path, content=body, headers={"Content-Type": "application/json"}))
        check_next(http)


@settings(max_examples=40)
@given(body=st.binary(max_size=200))
def test_any_bytes_are_answered(small: TinyServer, body: bytes) -> None:
    with httpx.Client(base_url=small.url, timeout=30) as http:
        check(http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"}))
        check_next(http)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/models/%ff%fe%00 HTTP/1.1\r\nHost: x\r\nX-Request-Id: \xff\xfe\r\nAuthorization: \xff\r\n\r\n",
        b"BREW /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_malformed_http(small: TinyServer, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", small.port), timeout=10) as connection:
        try:
            connection.sendall(data)
            answer = connection.recv(4096)
        except ConnectionError:
            answer = b""
    assert not answer or answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4"))
    with httpx.Client(base_url=small.url) as http:
        check_next(http)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_the_openapi_document_is_kept(small: TinyServer, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{small.url}/openapi.json")
    operations = [result.ok() for result in document.get_all_operations()]
    assert {operation.path for operation in operations} >= {*PATHS, "/metrics"}
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and operation.method in ("get", "delete"):
            continue  # nothing of it can be wrong

        @settings(
            max_examples=15,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def keeps(case: schemathesis.Case) -> None:
            case.call_and_validate(
                checks=[
                    not_a_server_error,
                    status_code_conformance,
                    content_type_conformance,
                    response_schema_conformance,
                ],
                timeout=30,
            )

        keeps()
