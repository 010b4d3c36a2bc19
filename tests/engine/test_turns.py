"""Who is served when: nobody starves or waits for long, and what ends frees its memory at once."""

import gc
import weakref
from dataclasses import replace

import pytest

from oracles.tiny_engine import GREEDY, TinyEngine, prompt


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


def test_a_finished_request_is_freed_at_once() -> None:
    engine = TinyEngine()
    gc.disable()
    try:
        ended = [weakref.ref(request) for request in engine.add(prompt(100), replace(GREEDY, n=2))]
        engine.run()
        assert [request() for request in ended] == [None, None]
    finally:
        gc.enable()
