"""The fields of a response of /v1/responses that repeat the request."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from oracles.tiny_server import TinyServer

PLACE: Any = {
    "type": "object",
    "properties": {"at": {"enum": [None, "Paris"], "default": None}},
    "required": ["at"],
    "additionalProperties": False,
}
PLACE_TOOL: Any = {"type": "function", "name": "place", "parameters": PLACE, "strict": True}
PLACE_FORM: Any = {"type": "json_schema", "name": "place", "schema": PLACE}


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({}, {"temperature": 0.5, "top_p": 0.75, "max_output_tokens": None, "store": True, "top_logprobs": 0}),
        ({"temperature": None, "top_p": None}, {"temperature": 0.5, "top_p": 0.75}),
        ({"temperature": 1.5, "top_p": 0}, {"temperature": 1.5, "top_p": 0}),
        ({"temperature": 0, "top_p": 1}, {"temperature": 0, "top_p": 1}),
        ({"max_output_tokens": 2, "truncation": None}, {"max_output_tokens": 2, "truncation": "disabled"}),
        ({"instructions": "Be short."}, {"instructions": "Be short.", "previous_response_id": None}),
        ({"metadata": {"a": "b"}, "user": "me"}, {"metadata": {"a": "b"}, "user": "me", "background": False}),
        ({"prompt_cache_key": "a", "safety_identifier": "b"}, {"prompt_cache_key": "a", "safety_identifier": "b"}),
        ({"store": False, "service_tier": "flex"}, {"store": False, "service_tier": "default"}),
        ({"parallel_tool_calls": False, "max_tool_calls": 2}, {"parallel_tool_calls": False, "max_tool_calls": 2}),
        (
            {"parallel_tool_calls": None, "tools": None},
            {"parallel_tool_calls": True, "tools": [], "tool_choice": "auto"},
        ),
        (
            {"tools": [PLACE_TOOL], "tool_choice": {"type": "function", "name": "place"}},
            {"tools": [{**PLACE_TOOL, "description": None}], "tool_choice": {"type": "function", "name": "place"}},
        ),
        (
            {"text": {"format": PLACE_FORM}},
            {"text": {"format": {**PLACE_FORM, "description": None, "strict": None}, "verbosity": None}},
        ),
        ({"text": {"verbosity": "low"}}, {"text": {"format": {"type": "text"}, "verbosity": "low"}}),
        ({"reasoning": {"effort": "low"}}, {"reasoning": {"effort": "low", "summary": None}}),
        ({"reasoning": None, "text": None}, {"reasoning": {"effort": None, "summary": None}, "tool_choice": "auto"}),
        ({"top_logprobs": 2}, {"top_logprobs": 2}),
    ],
)
def test_what_was_said_comes_back_and_else_what_took_effect(with_defaults: TinyServer, sent: Any, said: Any) -> None:
    got = httpx.post(f"{with_defaults.url}/v1/responses", json={"input": "x", "stop": [" ", "e"], **sent}).json()
    assert {name: got[name] for name in said} == said
    stored = httpx.get(f"{with_defaults.url}/v1/responses/{got['id']}")
    assert stored.json() == got if got["store"] else stored.status_code == 404


@pytest.fixture(scope="module")
def with_defaults() -> Iterator[TinyServer]:
    with TinyServer(sampling_defaults={"temperature": 0.5, "top_p": 0.75}) as server:
        yield server
