"""Equal beginnings of prompts are computed once, and the statistics count them so."""

from dataclasses import replace

import pytest

from faquant.engine.engine import PAGE_SIZE
from faquant.sampling.params import SamplingParams
from oracles.tiny_engine import GREEDY, Asked, TinyEngine, alone, prompt, same


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


def test_prefixes_are_shared_up_to_a_dynamic_rope_models_own_length() -> None:
    engine = TinyEngine("odd")
    engine.add(prompt(200), GREEDY)
    engine.run()
    for length, found in ((200, 128), (210, 128), (300, 0)):  # 256 is the model's own length
        (request,) = engine.add((*prompt(200), *prompt(length - 200, 1)), GREEDY)
        engine.run()
        assert request.completion().cached_tokens == found


def test_prefixes_are_shared_by_requests_with_the_same_factors_of_longrope() -> None:
    engine = TinyEngine("odd-longrope")
    engine.add(prompt(200), GREEDY)
    engine.run()
    for seed, length, found in (
        (1, 210, 128),
        (1, 300, 0),
        (2, 310, 128),
        (3, 210, 128),
    ):  # 256 is the original context
        (request,) = engine.add((*prompt(200), *prompt(length - 200, seed)), GREEDY)
        engine.run()
        assert request.completion().cached_tokens == found


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
