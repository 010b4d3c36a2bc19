"""Answers that the grammar does not fully constrain: the client gets one that follows the schema, or an error."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from faquant.structured.structured_output import StructuredOutput
from oracles.tiny_server import GREEDY, NAME, BytesEngine, TinyServer

DIGIT = {"type": "object", "properties": {"n": {"enum": list(range(10))}}, "required": ["n"]}
SCHEMA: dict[str, Any] = {**DIGIT, "additionalProperties": False}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "digit", "schema": SCHEMA}}
TOOL: Any = {"type": "function", "function": {"name": "digit", "parameters": SCHEMA}}
NAMED: Any = {"type": "function", "function": {"name": "digit"}}
USER: Any = {"role": "user", "content": "A digit?"}
ASKED: dict[str, Any] = {"model": NAME, "messages": [USER], "max_tokens": 120}


def is_wrong(text: str) -> str | None:
    found = text.replace(" ", "").replace("\n", "").split('"n":')
    return None if all(part[0] in "789" for part in found[1:]) else "The digit is too small."


@pytest.fixture
def _checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only 7, 8 and 9 pass."""
    monkeypatch.setattr(StructuredOutput, "unenforced", ("the digit",))
    monkeypatch.setattr(StructuredOutput, "problem", lambda _, text: is_wrong(text))


def counted(server: TinyServer, name: str = "invalid_answers_total") -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"faquant_{name} ")).split()[1])


def answer(client: openai.OpenAI, problem: str = "The digit is too small.", **asked: Any) -> Any:
    """None if no draw was valid."""
    try:
        return client.chat.completions.create(**ASKED, **asked)
    except openai.InternalServerError as failure:
        error = failure
    assert error.code == "invalid_answer"
    assert "None of 4 answers has the required form. The last one: " in str(error)
    assert problem in str(error)
    return None


@pytest.mark.usefixtures("_checked")
def test_only_valid_answers_are_sent(server: TinyServer, client: openai.OpenAI) -> None:
    before, kinds = counted(server), set()
    for seed in range(12):
        whole = answer(client, seed=seed, response_format=FORMAT)
        if whole is not None:
            assert json.loads(whole.choices[0].message.content)["n"] in (7, 8, 9)
            assert whole.usage.completion_tokens < 40  # those of the answer, not of the draws before
        kinds.add(whole is None)
        pieces, failed = [], None
        try:
            for chunk in client.chat.completions.create(**ASKED, response_format=FORMAT, seed=seed, stream=True):
                pieces += [chunk.choices[0].delta.content] if chunk.choices[0].delta.content else []
        except openai.APIError as error:
            failed = error.code
        assert pieces == ([] if whole is None else [whole.choices[0].message.content])
        assert failed == ("invalid_answer" if whole is None else None)
    assert kinds == {True, False}
    assert counted(server) > before


@pytest.mark.usefixtures("_checked")
def test_metrics_count_what_was_sent_apart_from_what_was_drawn() -> None:
    with TinyServer() as server, server.client() as client:
        sent = failed = 0
        for seed in range(8):
            reply = answer(client, seed=seed, response_format=FORMAT)
            sent += 0 if reply is None else reply.usage.completion_tokens
            failed += reply is None
        assert 0 < failed < 8
        assert counted(server, "generated_tokens_total") == sent
        draws = counted(server)
        assert draws >= 4 * failed
        assert counted(server, "discarded_tokens_total") >= draws * len('{"n":0}')
        # These tokens come all at once, so that they have no time between them.
        assert counted(server, "per_token_seconds_count") == 0
        assert counted(server, "first_token_seconds_count") == 8 - failed
        client.completions.create(model=NAME, prompt="One day", max_tokens=4, **GREEDY)
        assert counted(server, "per_token_seconds_count") == 1


@pytest.mark.usefixtures("_checked")
def test_responses_and_their_streams_have_the_same_answers(server: TinyServer) -> None:
    """Of several requests at once, whose draws take turns; failures are the same too."""
    form = {"format": {"type": "json_schema", "name": "digit", "schema": SCHEMA}}
    tool = {"type": "function", **TOOL["function"]}
    kinds: list[Any] = [{"text": form}, {"tools": [tool], "tool_choice": "required"}, {"text": form, "tools": [tool]}]
    asked: list[Any] = [
        {"input": "A digit?", "max_output_tokens": 120, "seed": seed, **kind} for seed in range(4) for kind in kinds
    ]

    def ask(body: Any) -> Any:
        """What is in the items, or the error."""
        reply = httpx.post(f"{server.url}/v1/responses", json=body, timeout=60)
        if body.get("stream"):
            data = [line.removeprefix("data: ") for line in reply.text.split("\n") if line.startswith("data: ")]
            last = json.loads(data[-1])["response"]
        else:
            last = reply.json()
        if last.get("error"):
            return last["error"]["message"]
        return [(item["type"], item.get("content"), item.get("arguments")) for item in last["output"]]

    alone = [ask(body) for body in asked]
    assert {type(found) for found in alone} == {str, list}
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(ask, asked)) == alone
        assert list(threads.map(ask, [{**body, "stream": True} for body in asked])) == alone


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_a_client_that_leaves_while_its_answer_is_withheld(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StructuredOutput, "unenforced", ("anything",))
    body = {
        "/v1/chat/completions": {"messages": [USER], "n": 2, "response_format": FORMAT},
        "/v1/responses": {"input": "A digit?", "text": {"format": {"type": "json_schema", **FORMAT["json_schema"]}}},
    }[path]
    with TinyServer(BytesEngine(slow=0.05, pages=40), sse_keep_alive_interval=0.01) as server:
        with httpx.stream("POST", server.url + path, json={**body, "stream": True}) as stream:
            assert next(line for line in stream.iter_lines() if line == ": keep-alive")
        server.wait_until_nothing_is_held()
        assert counted(server, "generated_tokens_total") == 0
        assert set(server.engine.stats().finished) == {"abort"}


@pytest.mark.usefixtures("_checked")
def test_calls_are_checked(client: openai.OpenAI) -> None:
    right = 0
    for seed in range(8):
        reply = answer(client, seed=seed, tools=[TOOL], tool_choice=NAMED)
        if reply is not None:
            (call,) = reply.choices[0].message.tool_calls
            assert json.loads(call.function.arguments)["n"] in (7, 8, 9)
            right += 1
    assert right


def test_a_pattern_that_no_grammar_has(client: openai.OpenAI) -> None:
    """A back-reference: half of the answers are wrong, and none of them is sent."""
    letters = {"anyOf": [{"enum": ["aa", "ab", "ba", "bb"]}], "pattern": r"^([ab])\1$"}
    schema: dict[str, Any] = {"type": "object", "properties": {"w": letters}, "required": ["w"]}
    schema["additionalProperties"] = False
    wanted: Any = {"name": "letters", "schema": schema}
    form = {"type": "json_schema", "json_schema": wanted}
    replies = [answer(client, "does not match", response_format=form, seed=seed) for seed in range(12)]
    found = [json.loads(reply.choices[0].message.content)["w"] for reply in replies if reply is not None]
    assert set(found) == {"aa", "bb"}
    assert len(found) > 3
    with pytest.raises(openai.BadRequestError, match="'pattern' at /properties/w"):
        client.chat.completions.create(
            **ASKED, response_format={"type": "json_schema", "json_schema": {**wanted, "strict": True}}
        )
