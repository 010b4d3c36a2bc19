"""An answer is bitwise the one that the request gets alone, regardless of other requests."""

import gc
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from faquant.engine.engine import PAGE_SIZE
from faquant.engine.engine_config import EngineConfig
from faquant.engine.request import Completion, Request
from faquant.errors import FaquantError, UsageError
from faquant.model.rope import Rope
from faquant.sampling.params import SamplingParams
from faquant.sampling.sampler import Sampler
from faquant.structured.structured_output import StructuredOutput
from faquant.text.chat_template import ChatTemplates
from faquant.text.tokenizer import Tokenizer
from oracles.random_decoder import VOCABULARY, tokens
from oracles.threads import set_threads
from oracles.tiny_engine import END, Asked, TinyEngine, tiny_model

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def prompt(length: int, seed: int = 0, shared: int = 0) -> tuple[int, ...]:
    """Random tokens, the first `shared` of which are the same in all prompts."""
    return (*tokens(shared, seed=7).tolist(), *tokens(length, seed=100 + seed).tolist())[:length]


def same(got: Completion, expected: Completion) -> None:
    """Assert equality except for cached_tokens; logprobs must be equal to the last bit."""
    assert replace(got, cached_tokens=0) == replace(expected, cached_tokens=0)


@cache
def alone(asked: Asked, kind: str = "llama", scheme: str = "default") -> Completion:
    return asked.alone(kind, scheme)


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.8]),
    top_p=st.sampled_from([1.0, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    min_tokens=st.sampled_from([0, 1]),
    stop_token_ids=st.sampled_from([(), (3, 5, 8)]),
    seed=st.integers(0, 2),
    max_tokens=st.sampled_from([1, 2, 20, 60]),
    n=st.sampled_from([1, 1, 2, 5]),
    logit_bias=st.sampled_from([{}, {}, {4: 3.0, 9: -100.0}]),
    stop=st.sampled_from([(), ("BA",)]),
    ignore_eos=st.booleans(),
    logprobs=st.just(3),
) | st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.8]),
    seed=st.integers(0, 2),
    max_tokens=st.sampled_from([1, 2, 20]),
    structured_output=st.just(StructuredOutput(regex="[A-E]{1,9}(F[A-C]{4})?")),
    logprobs=st.just(3),
)
REQUESTS = st.lists(
    st.tuples(
        st.builds(
            prompt, st.sampled_from([1, 2, 100, 127, 128, 129, 256, 300]), st.integers(0, 2), st.sampled_from([0, 140])
        ),
        PARAMS,
        st.integers(0, 30),  # the step in which it arrives
        st.sampled_from([None, None, None, 0, 3, 20]),  # after how many steps it is aborted
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["llama", "odd", "odd-qwen2-window", "odd-qwen3"]),
    scheme=st.sampled_from(["default", "static"]),
    mix=REQUESTS,
    threads=st.sampled_from([1, 2]),
    pages=st.sampled_from([3, 4, 6, 100]),
    max_num_seqs=st.sampled_from([1, 3, 8]),
    max_num_batched_tokens=st.sampled_from([8, 40, 500]),
    enable_prefix_caching=st.booleans(),
    speculative_tokens=st.sampled_from([0, 3]),
)
def test_any_mix_as_alone(
    kind: str,
    scheme: str,
    mix: list[tuple[tuple[int, ...], SamplingParams, int, int | None]],
    threads: int,
    **options: Any,
) -> None:
    set_threads(threads)
    engine = TinyEngine(kind, scheme, **options)
    requests: dict[int, list[Request]] = {}
    for step in range(400):
        for number, (ids, params, arrival, _) in enumerate(mix):
            if arrival == step:
                requests[number] = engine.add(ids, params)
        for number, (*_, arrival, patience) in enumerate(mix):
            if patience is not None and step == arrival + patience:
                held = engine.state().used_pages
                was_running = any(request.pages for request in requests[number])
                for request in requests[number]:
                    engine.abort(request)
                assert not was_running or engine.state().used_pages < held or engine.config.enable_prefix_caching
                engine.check_integrity()
        engine.step()
        if step > 30 and not engine.has_work:
            break
    engine.run()
    assert engine.state().used_pages == 0
    for number, (ids, params, *_) in enumerate(mix):
        for request in requests[number]:
            got = request.completion()
            expected = alone(Asked(ids, params, request.index), kind, scheme)
            if got.finish_reason == "abort":
                assert expected.token_ids[: len(got.token_ids)] == got.token_ids
            else:
                same(got, expected)


def test_a_full_pool_with_hits_and_preemptions_changes_no_answer() -> None:
    """vLLM #50702: an int8 cache with prefix hits in a full pool gave other answers."""
    engine = TinyEngine(pages=6, max_num_seqs=6, max_num_batched_tokens=200)
    params = replace(GREEDY, max_tokens=150, logprobs=2)
    mix = [Asked(prompt(200 + number, number, 140), params) for number in range(6)]
    requests = [engine.add(asked.prompt, params)[0] for asked in mix]
    engine.run()
    assert engine.stats().preemptions > 0
    assert engine.stats().cached_tokens > 0
    for asked, request in zip(mix, requests, strict=True):
        same(request.completion(), alone(asked))


def test_an_answer_is_reused_as_the_prefix_of_the_next_prompt() -> None:
    engine = TinyEngine()
    params = replace(GREEDY, max_tokens=100)
    (first,) = engine.add(prompt(200), params)
    engine.run()
    (second,) = engine.add(first.ids, params)
    engine.run()
    assert second.completion().cached_tokens == 2 * PAGE_SIZE
    assert (engine.stats().prompt_tokens, engine.stats().cached_tokens) == (500, 256)
    same(second.completion(), alone(Asked(tuple(first.ids), params)))
    engine.forget_prefixes()
    (third,) = engine.add(first.ids, params)
    engine.run()
    assert third.completion().cached_tokens == 0


def test_prompts_that_arrive_together_compute_their_shared_prefix_once() -> None:
    engine = TinyEngine(max_num_batched_tokens=500)
    for number in range(4):
        engine.add(prompt(300, number, 256), GREEDY)
    engine.run()
    assert engine.stats().cached_tokens == 3 * 256
    assert engine.stats().prefilled_tokens == 300 + 3 * 44


def test_a_prompt_counts_once_for_all_its_answers() -> None:
    engine = TinyEngine()
    engine.add(prompt(300), replace(GREEDY, n=4))
    engine.run()
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.cached_tokens) == (300, 0)
    assert (stats.generated_tokens, stats.finished) == (4 * 8, {"length": 4})
    engine.add(prompt(300), replace(GREEDY, n=2))
    engine.run()
    assert (engine.stats().prompt_tokens, engine.stats().cached_tokens) == (600, 256)


def test_a_fully_cached_prompt_still_runs_its_last_token() -> None:
    engine = TinyEngine()
    answers = []
    for _ in range(2):
        (request,) = engine.add(prompt(256), GREEDY)
        engine.run()
        answers.append(request.completion())
    assert [answer.cached_tokens for answer in answers] == [0, 128]
    same(*answers)


def test_speculation_changes_no_answer_and_saves_steps() -> None:
    steps = []
    for count in (0, 6):
        engine = TinyEngine(speculative_tokens=count)
        asked = Asked(prompt(40) * 3, replace(GREEDY, max_tokens=80, logprobs=1))
        (request,) = engine.add(asked.prompt, asked.params)
        engine.run()
        same(request.completion(), alone(asked))
        steps.append(engine.stats().steps)
        assert (engine.stats().accepted_tokens > 0) == (count > 0)
        assert engine.stats().generated_tokens == 80
    assert steps[1] < steps[0]


def test_draft_tokens_take_no_budget_from_prompts() -> None:
    """Otherwise a repetitive answer would delay all prompts."""
    engine = TinyEngine(max_num_batched_tokens=8, speculative_tokens=7)
    (repeats,) = engine.add(prompt(9), replace(GREEDY, max_tokens=600, logit_bias={5: 100.0}))
    while repeats.remaining_tokens > 580:
        engine.step()
    assert engine.stats().accepted_tokens > 7
    (other,) = engine.add(prompt(35, 1), GREEDY)
    for _ in range(5):
        engine.step()
    assert other.first_token


def test_a_draft_token_with_nan_logits_keeps_the_tokens_before_it() -> None:
    answers = []
    for count in (0, 4):
        engine = TinyEngine(speculative_tokens=count)
        params = replace(GREEDY, max_tokens=40, logit_bias={5: 100.0}, stop=("FFFFFFFF",))
        (request,) = engine.add(prompt(9), params)
        logits = engine._decoder.logits

        def none_from_the_ninth_on(hidden: torch.Tensor, request: Request = request) -> torch.Tensor:
            rows = logits(hidden)  # noqa: B023
            rows[8 - len(request.answer_ids) :] = float("nan")
            return rows

        engine._decoder.logits = none_from_the_ninth_on  # type: ignore[method-assign]
        try:
            engine.run()
        finally:
            del engine._decoder.logits
        answers.append(request.completion())
    assert answers[0].finish_reason == "stop"
    same(*answers)


def test_pages_that_a_request_filled_itself_do_not_count_as_cached() -> None:
    engine = TinyEngine(pages=6, max_num_seqs=4, max_num_batched_tokens=4)
    (first,) = engine.add(prompt(120), replace(GREEDY, max_tokens=400))
    while first.pending != 1:
        engine.step()
    (second,) = engine.add(prompt(450, 1), GREEDY)
    engine.run()
    stats = engine.stats()
    assert stats.preemptions > 0
    assert second.completion().cached_tokens == stats.cached_tokens == 0
    assert stats.prompt_tokens == 570
    assert stats.prefilled_tokens > 570, "recomputed tokens count again"


def test_end_tokens_that_have_no_logits() -> None:
    """Some models' configs name them; min_tokens masks end tokens."""
    engine = TinyEngine()
    engine.tokenizer.eos_token_ids = (END, VOCABULARY + 7)
    (request,) = engine.add(prompt(5), SamplingParams(temperature=0, max_tokens=5, min_tokens=2))
    engine.run()
    assert request.finish_reason in ("stop", "length")


def test_a_stop_string_that_only_the_end_completes() -> None:
    """A byte token waits for the bytes that might follow; when none do, its text is final."""
    backend = Backend(models.WordLevel({"A": 0, "B": 1, "<0x0A>": 2, "</s>": 3}, "A"))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = Tokenizer(backend, {"eos_token": "</s>"}, [3], None, ChatTemplates({}, Path()))
    rope = Rope(tiny_model().config)
    for answer, kept in (([0, 2], [0, 2]), ([0, 2, 3], [0, 2])):
        params = SamplingParams(temperature=0, max_tokens=len(kept), stop=("\n",))
        sampler = Sampler(params, [0], vocab_size=4, end_token_ids=[3])
        request = Request(0, [0], tokenizer, sampler, rope)
        for token in answer:
            if request.finish_reason is None:
                request.accept([token])
        completion = request.completion()
        assert (completion.text, completion.finish_reason, completion.stop_reason) == ("A", "stop", "\n")


def test_prefixes_are_shared_up_to_a_dynamic_rope_models_own_length() -> None:
    engine = TinyEngine("odd")
    engine.add(prompt(200), GREEDY)
    engine.run()
    for length, found in ((200, 128), (210, 128), (300, 0)):  # 256 is the model's own length
        (request,) = engine.add((*prompt(200), *prompt(length - 200, 1)), GREEDY)
        engine.run()
        assert request.completion().cached_tokens == found


def test_the_oldest_is_served_first_and_long_prompts_starve_no_other() -> None:
    engine = TinyEngine(max_num_seqs=4, max_num_batched_tokens=64)
    long = [engine.add(prompt(2000, number), GREEDY)[0] for number in range(2)]
    engine.step()
    (short,) = engine.add(prompt(20, 9), GREEDY)
    later = [engine.add(prompt(2000, 5 + number), GREEDY)[0] for number in range(4)]
    steps = 0
    while short.finish_reason is None:
        engine.step()
        steps += 1
    assert steps <= 20, "the prompt shares each step with the long ones before it"
    engine.run()
    ended = sorted([*long, *later], key=lambda request: request.first_token)
    assert ended == [*long, *later], "equal prompts are answered in the order of their arrival"


@pytest.mark.parametrize("kind", ["answers", "prompts"])
def test_requests_that_wait_for_one_prompt_do_not_block_others(kind: str) -> None:
    engine = TinyEngine(max_num_batched_tokens=64)
    params = replace(GREEDY, n=40 if kind == "answers" else 1)
    for number in range(1 if kind == "answers" else 40):
        engine.add(prompt(1000, number, 900), params)
    engine.step()
    (short,) = engine.add(prompt(3, 99), GREEDY)
    steps = 0
    while not short.first_token:
        engine.step()
        steps += 1
    assert steps <= 5


def test_decoding_goes_on_while_a_long_prompt_is_read() -> None:
    engine = TinyEngine(max_num_batched_tokens=32)
    (short,) = engine.add(prompt(5), replace(GREEDY, max_tokens=40))
    engine.step()
    engine.add(prompt(1500), GREEDY)
    for _ in range(20):
        before = len(short.answer_ids)
        engine.step()
        assert len(short.answer_ids) == before + 1


def test_ending_early_frees_pages_in_the_same_step() -> None:
    engine = TinyEngine(enable_prefix_caching=False)
    (request,) = engine.add(prompt(300), GREEDY)
    engine.step()
    assert engine.state().used_pages == 3
    engine.abort(request)
    assert engine.state().used_pages == 0
    assert request.completion().finish_reason == "abort"
    engine.abort(request)
    assert not engine.has_work
    assert engine.stats().finished == {"abort": 1}


def test_invalid_requests_are_refused() -> None:
    engine = TinyEngine(pages=2)
    for ids, params, message in (
        ([], GREEDY, "no tokens"),
        ([0, 50], GREEDY, "outside the vocabulary of 50"),
        ([0, True], GREEDY, "outside the vocabulary"),
        ([0], replace(GREEDY, stop_token_ids=(50,)), "stop_token_ids has the token 50"),
        ([0], replace(GREEDY, logit_bias={50: 1.0}), "logit_bias has the token 50"),
        (prompt(249), GREEDY, "exceed the context of 256"),
    ):
        for what in (engine.check, engine.add):
            with pytest.raises(UsageError, match=message):
                what(ids, params)
    assert not engine.has_work


def test_nan_logits_end_only_their_own_request() -> None:
    engine = TinyEngine()
    (broken,) = engine.add(prompt(20), GREEDY)
    (sound,) = engine.add(prompt(30, 1), GREEDY)
    logits = engine._decoder.logits

    def first_is_nan(hidden: torch.Tensor) -> torch.Tensor:
        rows = logits(hidden)
        if broken.finish_reason is None:
            rows[0] = float("nan")
        return rows

    engine._decoder.logits = first_is_nan  # type: ignore[method-assign]
    try:
        engine.run()
    finally:
        del engine._decoder.logits
    assert broken.completion().finish_reason == "error"
    assert isinstance(broken.error, FaquantError)
    same(sound.completion(), alone(Asked(prompt(30, 1), GREEDY)))


def test_several_answers_read_their_prompt_once_and_differ() -> None:
    engine = TinyEngine()
    params = SamplingParams(seed=3, n=3, max_tokens=20, ignore_eos=True, logprobs=1)
    requests = engine.add(prompt(260), params)
    engine.run()
    answers = [request.completion() for request in requests]
    assert [answer.index for answer in answers] == [0, 1, 2]
    assert len({answer.token_ids for answer in answers}) == 3
    assert engine.stats().prefilled_tokens == 260 + 2, "each runs the last token, whose logits it needs"
    same(answers[0], alone(Asked(prompt(260), replace(params, n=1))))
    again = engine.add(prompt(260), params)
    engine.run()
    for first, second in zip(answers, again, strict=True):
        same(first, second.completion())


def test_a_finished_request_is_freed_at_once() -> None:
    engine = TinyEngine()
    gc.disable()
    try:
        ended = [weakref.ref(request) for request in engine.add(prompt(100), replace(GREEDY, n=2))]
        engine.run()
        assert [request() for request in ended] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("max_num_seqs", [1, 2, 8])
@pytest.mark.parametrize("left", [0, 2])
def test_equal_short_prompts_copy_the_page_of_a_running_one(max_num_seqs: int, left: int) -> None:
    engine = TinyEngine(max_num_seqs=max_num_seqs)
    params = SamplingParams(seed=3, n=4, max_tokens=5, ignore_eos=True, logprobs=1)
    requests = engine.add(prompt(100), params)
    for _ in range(left):
        engine.step()
    if left:
        engine.abort(requests[0])
    engine.run()
    for index, request in enumerate(requests):
        if not left or index:
            same(request.completion(), alone(Asked(prompt(100), params, index)))
    if max_num_seqs == 8:
        assert engine.stats().prefilled_tokens == 100 + 3


def test_stop_tokens_end_an_answer_and_say_so() -> None:
    free = alone(Asked(prompt(30), GREEDY))
    wanted = free.token_ids[3]
    engine = TinyEngine()
    (request,) = engine.add(prompt(30), replace(GREEDY, stop_token_ids=(wanted,)))
    engine.run()
    answer = request.completion()
    assert (answer.finish_reason, answer.stop_reason) == ("stop", wanted)
    assert answer.token_ids == free.token_ids[: free.token_ids.index(wanted)]


def test_ends() -> None:
    """The model's own end token is not part of the answer."""
    for seed in range(40):
        params = SamplingParams(temperature=1.5, seed=seed, max_tokens=60)
        engine = TinyEngine()
        (request,) = engine.add(prompt(5), params)
        engine.run()
        answer = request.completion()
        if answer.finish_reason == "stop":
            assert answer.stop_reason is None
            assert END not in answer.token_ids
            assert len(answer.text) == len(answer.token_ids) < 60
            return
    raise AssertionError("no answer ended by itself")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs must be a whole number from 1"),
        ({"max_num_seqs": True}, "max_num_seqs"),
        ({"max_model_len": 2.5}, "max_model_len"),
        ({"kv_cache_memory": -1}, "kv_cache_memory"),
        ({"speculative_tokens": 65}, "speculative_tokens"),
        ({"max_num_seqs": 16, "max_num_batched_tokens": 8}, "at least max_num_seqs"),
        ({"kv_cache_dtype": "int4"}, "one of auto, bfloat16, not 'int4'"),
        ({"enable_prefix_caching": 1}, "true or false"),
    ],
)
def test_an_invalid_configuration_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EngineConfig(**options)


def test_a_configuration_beyond_the_model_or_the_memory_is_refused() -> None:
    with pytest.raises(UsageError, match="exceeds the model's context of 4096"):
        TinyEngine(max_model_len=5000)
    with pytest.raises(UsageError, match="cache of 100 bytes holds 0 tokens"):
        TinyEngine(kv_cache_memory=100)
    with pytest.raises(UsageError, match=r"holds 256 tokens, but one request may have 300.*kv_cache_memory"):
        TinyEngine(pages=2, max_model_len=300)
    assert TinyEngine(pages=2, max_model_len=256).max_model_len == TinyEngine(pages=2).max_model_len == 256
