"""An answer is bitwise the one that the request gets alone, regardless of other requests."""

from dataclasses import replace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faquant.engine.request import Request
from faquant.errors import FaquantError
from faquant.sampling.params import SamplingParams
from faquant.structured.structured_output import StructuredOutput
from oracles.threads import set_threads
from oracles.tiny_engine import GREEDY, Asked, TinyEngine, alone, prompt, same

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
