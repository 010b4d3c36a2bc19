"""Chat completions, judged by OpenAI's own client."""

import asyncio
import json
from typing import Any

import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from faquant.sampling.sampler import SamplingParams
from oracles.tiny_server import GREEDY, NAME, TinyServer, alone, tokenizer

MESSAGES: Any = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Größe?"}]
PROMPT = tokenizer().encode_chat(MESSAGES)


def expected(**params: Any) -> str:
    return alone(PROMPT, SamplingParams(**{"temperature": 0, "ignore_eos": True, "max_tokens": 24, **params})).text


def test_an_answer(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(model=NAME, messages=MESSAGES, max_completion_tokens=24, **GREEDY)
    (choice,) = got.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == expected()
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert got.object == "chat.completion"
    assert got.model == NAME
    assert got.usage is not None
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (len(PROMPT), 24)
    assert got.usage.total_tokens == len(PROMPT) + 24


def test_a_streamed_answer_is_the_same(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=24, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected()
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 24


def test_without_include_usage_there_is_no_chunk_of_it(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=3, stream=True, **GREEDY))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_the_async_client(server: TinyServer) -> None:
    async def main() -> None:
        async with server.async_client() as client:
            stream = await client.chat.completions.create(
                model=NAME, messages=MESSAGES, max_tokens=24, stream=True, **GREEDY
            )
            texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            assert "".join(texts) == expected()

    asyncio.run(main())


def test_the_clients_stream_helper_returns_the_same(client: openai.OpenAI) -> None:
    full = expected()
    stop = next(letter for letter in full[5:] if letter != "\ufffd")
    asked: Any = {"model": NAME, "messages": MESSAGES, "max_tokens": 24, "stop": stop, "logprobs": True, **GREEDY}
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == full[: full.index(stop)]
    assert final.choices[0].logprobs == client.chat.completions.create(**asked).choices[0].logprobs


def test_several_answers_and_a_seed(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> list[str | None]:
        got = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=12, n=3, **more)
        assert [choice.index for choice in got.choices] == [0, 1, 2]
        assert got.usage is not None
        assert got.usage.prompt_tokens == len(PROMPT)
        return [choice.message.content for choice in got.choices]

    assert ask(seed=5) == ask(seed=5)
    assert ask(seed=5) != ask(seed=6)


def test_several_answers_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": NAME, "messages": MESSAGES, "max_tokens": 12, "n": 3, "seed": 7}
    whole = client.chat.completions.create(**asked)
    texts, roles = ["", "", ""], [0, 0, 0]
    for chunk in client.chat.completions.create(**asked, stream=True):
        assert isinstance(chunk, ChatCompletionChunk)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role is not None
    assert texts == [choice.message.content for choice in whole.choices]
    assert roles == [1, 1, 1]


@pytest.mark.parametrize("stream", [False, True])
def test_stop(client: openai.OpenAI, stream: bool) -> None:
    full = expected(max_tokens=60)
    stop = next(letter for letter in full[5:] if letter != "\ufffd")
    got = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=60, stop=[stop, "never there"], stream=stream, **GREEDY
    )
    if isinstance(got, openai.Stream):
        chunks = list(got)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = got.choices[0].message.content or "", got.choices[0].finish_reason
    assert text == full[: full.index(stop)]
    assert reason == "stop"


def test_logprobs(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=24, logprobs=True, top_logprobs=4, **GREEDY
    )
    assert got.choices[0].logprobs is not None
    content = got.choices[0].logprobs.content or []
    own = alone(PROMPT, SamplingParams(temperature=0, ignore_eos=True, max_tokens=24, logprobs=4))
    assert own.logprobs is not None
    assert [entry.logprob for entry in content] == [pytest.approx(logprob) for logprob, _ in own.logprobs]
    raw = b"".join(bytes(entry.bytes or []) for entry in content)
    assert raw.decode(errors="replace") == got.choices[0].message.content
    for entry in content:
        assert len(entry.top_logprobs) == 4
        assert entry.top_logprobs[0].logprob == entry.logprob  # greedy
        assert entry.token == entry.top_logprobs[0].token
        if not entry.token.startswith("bytes:"):
            assert entry.token.encode() == bytes(entry.bytes or [])


def test_logprobs_are_streamed_with_their_tokens(client: openai.OpenAI) -> None:
    asked: Any = {"model": NAME, "messages": MESSAGES, "max_tokens": 12, "logprobs": True, **GREEDY}
    whole = client.chat.completions.create(**asked).choices[0].logprobs
    parts = [
        entry
        for chunk in client.chat.completions.create(**asked, stream=True)
        for entry in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else None) or []
    ]
    assert whole is not None
    assert parts == whole.content


def test_by_default_the_answer_may_fill_the_context(client: openai.OpenAI, server: TinyServer) -> None:
    length = server.service.max_model_len
    words = "x" * (length - 60)
    prompt = len(tokenizer().encode_chat([{"role": "user", "content": words}]))
    got = client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": words}], **GREEDY)
    assert got.usage is not None
    assert got.usage.total_tokens == length
    assert got.usage.prompt_tokens == prompt


def test_tokens_found_in_the_prefix_cache_are_reported(client: openai.OpenAI) -> None:
    asked: Any = {"model": NAME, "messages": [{"role": "user", "content": "cached " * 60}], "max_tokens": 2}
    first = client.chat.completions.create(**asked).usage
    again = client.chat.completions.create(**asked).usage
    for usage, cached in ((first, 0), (again, 384)):
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == cached


def test_text_parts_a_developer_message_and_fields_without_effect(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(
        model=NAME,
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be short."}]},
            {"role": "user", "content": [{"type": "text", "text": "Größe?"}]},
        ],
        max_tokens=24,
        user="somebody",
        metadata={"a": "b"},
        store=False,
        response_format={"type": "text"},
        presence_penalty=0,
        **GREEDY,
    )
    assert got.choices[0].message.content == expected()


def test_an_answer_can_be_sent_back_unchanged(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=4, seed=1).choices[0].message
    more = [*MESSAGES, answer.model_dump(), {"role": "user", "content": "And?"}]
    assert client.chat.completions.create(model=NAME, messages=more, max_tokens=4).choices


def test_an_answer_follows_the_requested_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "string"}, "maxItems": 2}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    for seed in range(4):
        got = client.chat.completions.create(
            model=NAME, messages=MESSAGES, max_tokens=40, seed=seed, response_format=wanted
        )
        assert got.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(got.choices[0].message.content or ""), schema)
    got = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=20, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(got.choices[0].message.content or ""), dict)
    wanted["json_schema"]["schema"] = {"type": "object", "not": {}}
    with pytest.raises(openai.BadRequestError, match="admits no value"):
        client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=20, response_format=wanted)


def test_penalties_and_biases_reach_the_sampler(client: openai.OpenAI) -> None:
    for params in ({"presence_penalty": 1.5}, {"frequency_penalty": 1.0}, {"logit_bias": {"65": 100}}):
        ours = {**params, "logit_bias": {65: 100}} if "logit_bias" in params else params
        got = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=24, **GREEDY, **params)
        assert got.choices[0].message.content == expected(**ours) != expected()
