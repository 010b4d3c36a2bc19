"""Plain completions, judged by OpenAI's own client."""

from typing import Any

import openai
import pytest

from faquant.sampling.sampler import SamplingParams
from oracles.tiny_server import GREEDY, NAME, alone, tokenizer


def expected(text: str, **params: Any) -> str:
    ids = tokenizer().encode(text)
    return alone(ids, SamplingParams(**{"temperature": 0, "ignore_eos": True, "max_tokens": 16, **params})).text


def test_a_text(client: openai.OpenAI) -> None:
    got = client.completions.create(model=NAME, prompt="One day", **GREEDY)
    assert got.object == "text_completion"
    assert [choice.text for choice in got.choices] == [expected("One day")]
    assert got.choices[0].finish_reason == "length"
    assert got.usage is not None
    assert got.usage.completion_tokens == 16


@pytest.mark.parametrize("kind", ["texts", "ids"])
def test_several_prompts(client: openai.OpenAI, kind: str) -> None:
    texts = ["One", "Two", "Three and more"]
    prompt: Any = texts if kind == "texts" else [tokenizer().encode(text) for text in texts]
    got = client.completions.create(model=NAME, prompt=prompt, n=2, **GREEDY)
    assert [choice.index for choice in got.choices] == list(range(6))
    assert [choice.text for choice in got.choices] == [expected(text) for text in texts for _ in range(2)]
    assert got.usage is not None
    assert got.usage.prompt_tokens == sum(len(tokenizer().encode(text)) for text in texts)


def test_token_ids_streamed(client: openai.OpenAI) -> None:
    prompt = tokenizer().encode("One day")
    stream = client.completions.create(
        model=NAME, prompt=prompt, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == expected("One day")
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 16


def test_logprobs_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": NAME, "prompt": "One day", "logprobs": 3, "max_tokens": 20, **GREEDY}
    choice = client.completions.create(**asked).choices[0]
    found = choice.logprobs
    assert found is not None
    assert found.tokens is not None
    assert len(found.tokens) == len(found.token_logprobs or ()) == len(found.top_logprobs or ()) == 20
    for token, logprob, top in zip(found.tokens, found.token_logprobs or (), found.top_logprobs or (), strict=True):
        assert top[token] == logprob == max(top.values())
    offsets = found.text_offset or []
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    streamed: list[tuple[str, int]] = []
    for chunk in client.completions.create(**asked, stream=True):
        part = chunk.choices[0].logprobs
        if part is not None:
            streamed += zip(part.tokens or (), part.text_offset or (), strict=True)
    assert streamed == list(zip(found.tokens, offsets, strict=True))


def test_sampling_options_beyond_openai(client: openai.OpenAI) -> None:
    got = client.completions.create(
        model=NAME, prompt="One day", temperature=1.0, seed=3, extra_body={"top_k": 1, "ignore_eos": True}
    )
    assert got.choices[0].text == expected("One day")
