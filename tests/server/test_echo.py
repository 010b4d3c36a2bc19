"""`echo`: completions that begin with their prompt, and the log-probabilities of its tokens."""

import math
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from faquant.engine.request import Completion
from faquant.sampling.sampler import SamplingParams
from faquant.server.answer.echo import echo_of_ids, echo_of_text
from faquant.server.config import MAX_ECHOED_LOGPROBS
from oracles.tiny_server import GREEDY, NAME, BytesEngine, TinyServer, tokenizer

TEXT = "One day, größer 😀 and more."
IDS = tokenizer().encode(TEXT)


def scores(ids: list[int], count: int = 0) -> list[tuple[float, list[tuple[int, float]]]]:
    """The log-probabilities of a prompt's tokens but the first, each from a prompt of its own that ends before it."""
    engine = BytesEngine(max_num_seqs=1, enable_prefix_caching=False)
    found = []
    for end in range(1, len(ids)):
        params = SamplingParams(temperature=0, max_tokens=1, logprobs=count, logit_bias={ids[end]: 100})
        (request,) = engine.add(ids[:end], params)
        engine.run()
        assert request.answer_ids == [ids[end]]
        found += request.completion().logprobs or ()
    return found


EXPECTED = scores(IDS, 3)


def completed(engine: BytesEngine, prompt: list[int], **params: Any) -> Completion:
    (request,) = engine.add(prompt, SamplingParams(temperature=0, ignore_eos=True, **params))
    engine.run()
    return request.completion()


@pytest.mark.parametrize("tokens", [16, 20, 4096])
def test_scores_are_those_of_decoding_whatever_the_chunks(tokens: int) -> None:
    engine = BytesEngine(max_num_seqs=1, max_num_batched_tokens=tokens)
    for _ in range(2):  # the second time, the prompt's pages are in the prefix cache
        got = completed(engine, IDS, max_tokens=3, prompt_logprobs=3)
        assert got.prompt_logprobs == tuple(EXPECTED)
        assert got.cached_tokens == 0
    assert completed(engine, IDS, max_tokens=3).prompt_logprobs is None


def test_long_prompts_are_scored_and_leave_their_pages_to_others() -> None:
    prompt = (IDS * 40)[:700]
    engine = BytesEngine(max_num_seqs=4, max_num_batched_tokens=256)
    plain = completed(engine, prompt, max_tokens=4)
    scored = completed(engine, prompt, max_tokens=4, prompt_logprobs=0)
    assert scored.token_ids == plain.token_ids
    assert len(scored.prompt_logprobs or ()) == len(prompt) - 1
    assert scored.prompt_logprobs == completed(BytesEngine(), prompt, max_tokens=0, prompt_logprobs=0).prompt_logprobs
    assert completed(engine, [*prompt, 5], max_tokens=1).cached_tokens == 640


def test_preempted_prompts_are_scored_once() -> None:
    prompts = [(IDS * 40)[start : start + 380] for start in range(3)]
    engine = BytesEngine(pages=8, max_num_seqs=4, max_num_batched_tokens=128)
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=140, prompt_logprobs=0)
    requests = [request for prompt in prompts for request in engine.add(prompt, params)]
    engine.run()
    assert engine.stats().preemptions > 0
    for prompt, request in zip(prompts, requests, strict=True):
        alone = completed(BytesEngine(), prompt, max_tokens=0, prompt_logprobs=0)
        assert request.completion().prompt_logprobs == alone.prompt_logprobs


@pytest.mark.parametrize("prompt", [TEXT, IDS], ids=["text", "ids"])
@pytest.mark.parametrize("max_tokens", [0, 4])
@pytest.mark.parametrize("stream", [False, True])
def test_an_echo(client: openai.OpenAI, prompt: Any, max_tokens: int, stream: bool) -> None:
    asked: Any = {"model": NAME, "prompt": prompt, "max_tokens": max_tokens, "logprobs": 3, "echo": True, **GREEDY}
    plain: Any = {**asked, "echo": False, "max_tokens": 4}
    answer = client.completions.create(**plain).choices[0].text if max_tokens else ""
    got = client.completions.create(**asked, stream=stream)
    choices = [chunk.choices[0] for chunk in (got if isinstance(got, openai.Stream) else [got])]
    assert "".join(choice.text for choice in choices) == TEXT + answer
    assert choices[-1].finish_reason == "length"
    parts: Any = [choice.logprobs for choice in choices if choice.logprobs is not None]
    tokens = [token for part in parts for token in part.tokens]
    logprobs = [logprob for part in parts for logprob in part.token_logprobs]
    tops = [top for part in parts for top in part.top_logprobs]
    offsets = [offset for part in parts for offset in part.text_offset]
    assert len(tokens) == len(logprobs) == len(tops) == len(offsets) == len(IDS) + max_tokens
    assert logprobs[0] is None
    assert tops[0] is None
    assert logprobs[1 : len(IDS)] == [logprob for logprob, _ in EXPECTED]
    assert all(1 <= len(top) <= 3 for top in tops[1:])  # several tokens of this vocabulary have no text
    # lm-eval asks whether greedy decoding would have written the prompt.
    is_greedy = [logprob == max(top.values()) for logprob, top in zip(logprobs[1:], tops[1:], strict=True)]
    assert is_greedy[: len(EXPECTED)] == [logprob == top[0][1] for logprob, top in EXPECTED]
    assert all(is_greedy[len(EXPECTED) :])
    for token, offset in zip(tokens, offsets, strict=True):
        if not token.startswith("bytes:"):
            assert (TEXT + answer).startswith(token, offset)
    assert offsets == sorted(offsets)
    assert offsets[len(IDS) :][:1] in ([], [len(TEXT)])


def test_without_logprobs_and_with_several_answers(client: openai.OpenAI) -> None:
    asked: Any = {"model": NAME, "prompt": ["One", "Two"], "max_tokens": 5, "n": 2, **GREEDY}
    plain = [choice.text for choice in client.completions.create(**asked).choices]
    got = client.completions.create(**asked, echo=True)
    assert [choice.text for choice in got.choices] == [
        begin + text for begin, text in zip(("One", "One", "Two", "Two"), plain, strict=True)
    ]
    assert all(choice.logprobs is None for choice in got.choices)
    scored = client.completions.create(**asked, echo=True, logprobs=0)
    for choice in scored.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        assert len(choice.logprobs.token_logprobs) == 3 + 5
        assert all(math.isfinite(logprob) for logprob in choice.logprobs.token_logprobs[1:])


def test_a_prompt_may_fill_the_context_if_nothing_follows(server: TinyServer) -> None:
    prompt = (IDS * 200)[: server.service.max_model_len]
    body = {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 0}
    got = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
    assert len(got["choices"][0]["logprobs"]["tokens"]) == len(prompt)
    assert got["usage"]["completion_tokens"] == 0
    body["max_tokens"] = 1
    error = httpx.post(f"{server.url}/v1/completions", json=body).json()["error"]
    assert error["code"] == "context_length_exceeded"


def test_the_size_of_an_echo_is_limited(server: TinyServer) -> None:
    prompts = [[1] * 1000] * 13
    body = {"prompt": prompts, "max_tokens": 0, "echo": True, "logprobs": 20}
    assert MAX_ECHOED_LOGPROBS < 1000 * 13 * 21
    error = httpx.post(f"{server.url}/v1/completions", json=body).json()["error"]
    assert error["param"] == "logprobs"
    assert str(MAX_ECHOED_LOGPROBS) in error["message"]


def test_offsets_of_special_tokens_and_parts_of_characters() -> None:
    text = "ß<|im_end|>😀"
    ids = tokenizer().encode(text)
    assert echo_of_text(tokenizer(), text).offsets == [0, 0, 1, *[11] * 4]
    echo = echo_of_ids(tokenizer(), ids)
    assert (echo.text, echo.offsets) == (text, [0, 0, 1, *[11] * 4])
    cut = echo_of_ids(tokenizer(), ids[:-1])
    assert cut.text.startswith("ß<|im_end|>")
    assert list(cut.offsets) == [0, 0, 1, *[11] * 3]


def test_probabilities_are_those_of_a_distribution() -> None:
    vocabulary = 320
    got = completed(BytesEngine(), IDS, max_tokens=0, prompt_logprobs=20).prompt_logprobs or ()
    for logprob, top in got:
        values = np.array([value for _, value in top])
        assert logprob <= values[0]
        assert np.exp(values).sum() <= 1 + 1e-9
        assert len({token for token, _ in top}) == 20 <= vocabulary
