"""Stored responses of /v1/responses: continued, referred to, listed and forgotten."""

from typing import Any

import httpx
import openai
import pytest

from faquant.sampling.sampler import SamplingParams
from faquant.server.answer.stored import MAX_RESPONSES, ResponseStore
from oracles.tiny_server import NAME, TinyServer, alone, tokenizer

EXTRA: Any = {"extra_body": {"ignore_eos": True, "seed": 3}}
ASKED: Any = {"model": NAME, "input": "Hello", "max_output_tokens": 24, **EXTRA}


def own(messages: Any) -> str:
    params = SamplingParams(seed=3, ignore_eos=True, max_tokens=24)
    return alone(tokenizer().encode_chat(messages), params).text


def test_stored_responses(client: openai.OpenAI) -> None:
    first = client.responses.create(**ASKED)
    assert client.responses.retrieve(first.id) == first
    second = client.responses.create(**{**ASKED, "input": "And?"}, previous_response_id=first.id)
    third = client.responses.create(**{**ASKED, "input": "Then?"}, previous_response_id=second.id)
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": first.output_text}]
    talk += [{"role": "user", "content": "And?"}, {"role": "assistant", "content": second.output_text}]
    assert third.output_text == own([*talk, {"role": "user", "content": "Then?"}])
    items: Any = [{"role": "user", "content": "Hello"}, {"type": "item_reference", "id": first.output[0].id}]
    assert client.responses.create(**{**ASKED, "input": [*items, {"role": "user", "content": "And?"}]}).output_text == (
        second.output_text
    )
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="is not stored"):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(first.id)
    client.responses.retrieve(second.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{**ASKED, "input": "And?"}, previous_response_id=first.id)
    assert caught.value.code == "previous_response_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{**ASKED, "input": items})
    assert (caught.value.code, caught.value.param) == ("item_not_found", "input.1.id")
    kept = client.responses.create(**ASKED, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(kept.id)


def test_the_store_is_bounded() -> None:
    with TinyServer(response_store=4500) as server, server.client() as client:
        ids = [client.responses.create(**ASKED).id for _ in range(12)]
        held = [one for one in ids if server.service.responses.get(one)]
        assert 1 < len(held) < 12
        assert held == ids[-len(held) :]
        huge = client.responses.create(**{**ASKED, "input": "x" * 1500}, instructions="y" * 2000)
        assert server.service.responses.get(huge.id) is None
        assert server.service.responses.get(ids[-1]) is not None
    with TinyServer(response_store=0) as server, server.client() as client:
        one = client.responses.create(**ASKED)
        with pytest.raises(openai.BadRequestError, match="--response-store"):
            client.responses.create(**ASKED, previous_response_id=one.id)


def test_the_number_of_stored_responses_is_bounded(server: TinyServer, client: openai.OpenAI) -> None:
    client.responses.create(**ASKED)
    stored = server.service.responses.get(client.responses.create(**ASKED).id)
    assert stored is not None
    store = ResponseStore(1 << 30)
    for number in range(MAX_RESPONSES + 2):
        output = [stored.response.output[0].model_copy(update={"id": f"msg_{number}"})]
        store.put(stored.response.model_copy(update={"id": f"resp_{number}", "output": output}), [])
    assert store.get("resp_1") is None
    assert store.item("msg_1") is None
    assert store.get("resp_2") is not None
    assert store.item(f"msg_{MAX_RESPONSES + 1}") is not None


def test_the_items_of_the_input(client: openai.OpenAI) -> None:
    called: Any = {"type": "function_call", "id": "same", "call_id": "1", "name": "f", "arguments": "{}"}
    asked: Any = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "id": "same", "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"type": "reasoning", "id": "same", "summary": [{"type": "summary_text", "text": "Hm."}]},
        called,
        {"type": "function_call_output", "id": "same", "call_id": "1", "output": "sun"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": "Well."},
        {"role": "user", "content": "c"},
    ]
    first = client.responses.create(**{**ASKED, "input": asked}, instructions="These are not items.")
    items: list[Any] = list(client.responses.input_items.list(first.id, order="asc"))
    assert [item.type for item in items] == [
        *("message", "message", "reasoning", "function_call", "function_call_output"),
        *("message", "message", "message"),
    ]
    assert [item.role for item in items if item.type == "message"] == [
        *("system", "user", "assistant", "assistant", "user")
    ]
    assert [(part.type, part.text) for part in items[1].content] == [("input_text", "a"), ("input_text", "b")]
    assert (items[2].summary[0].text, items[3].name, items[4].output) == ("Hm.", "f", "sun")
    assert (items[5].content[0].refusal, items[6].content[0].text) == ("No.", "Well.")
    assert len({item.id for item in items}) == len(items)
    second = client.responses.create(**{**ASKED, "input": "d"}, previous_response_id=first.id)
    latest = list(client.responses.input_items.list(second.id))
    assert [item.id for item in latest[1:]] == [first.output[0].id, *(item.id for item in reversed(items))]
    client.responses.delete(first.id)
    assert list(client.responses.input_items.list(second.id)) == latest


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_the_pages_of_the_items(client: openai.OpenAI, order: Any) -> None:
    """All items come, each once, also an item that the input has several times."""
    first = client.responses.create(**ASKED)
    again: Any = {"type": "item_reference", "id": first.output[0].id}
    asked: Any = [{"role": "user", "content": str(number)} for number in range(5)] + [again, again]
    second = client.responses.create(**{**ASKED, "input": asked}, previous_response_id=first.id)
    whole = list(client.responses.input_items.list(second.id, order=order, limit=100))
    assert len({item.id for item in whole}) == len(whole) == 9
    for limit in (1, 2, 3, 4, 9):
        page = client.responses.input_items.list(second.id, order=order, limit=limit)
        assert (page.data, page.has_more) == (whole[:limit], limit < 9)
        assert list(page) == whole
    last = client.responses.input_items.list(second.id, order=order, after=whole[-1].id)
    assert (last.data, last.has_more) == ([], False)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("order=up", "order"),
        ("after=msg_0", "after"),
    ],
)
def test_a_wrong_page(server: TinyServer, client: openai.OpenAI, query: str, param: str) -> None:
    path = f"{server.url}/v1/responses/{client.responses.create(**ASKED).id}/input_items"
    response = httpx.get(f"{path}?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == query.split("=")[0]


def test_what_stored_responses_do_not_do(server: TinyServer, client: openai.OpenAI) -> None:
    stored = client.responses.create(**ASKED).id
    with pytest.raises(openai.BadRequestError, match="Only POST /v1/responses streams"):
        client.responses.retrieve(stored, stream=True)
    with pytest.raises(openai.NotFoundError, match="cancel does not exist"):
        client.responses.cancel(stored)
    with pytest.raises(openai.NotFoundError, match="is not stored"):
        client.responses.input_items.list("resp_0")
    counted = httpx.post(f"{server.url}/v1/responses/input_tokens", json={"input": "x"})
    assert (counted.status_code, counted.headers["allow"]) == (405, "GET")
    assert "POST /v1/responses/input_tokens is not supported" in counted.json()["error"]["message"]
