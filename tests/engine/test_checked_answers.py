"""Answers whose form the grammar cannot ensure: checked when they end, drawn again, and nothing is sent before."""

from dataclasses import replace

import pytest

from faquant.engine.engine import MAX_DRAWS
from faquant.engine.llm import LLM
from faquant.errors import AnswerError
from faquant.sampling.params import SamplingParams
from faquant.structured.structured_output import StructuredOutput
from oracles.random_decoder import tokens
from oracles.tiny_engine import GREEDY
from oracles.tiny_server import BytesEngine

WORDS = StructuredOutput(choice=tuple(f"{first}{second}" for first in "abcd" for second in "efghijkl"))
DRAWN = SamplingParams(temperature=1, max_tokens=8, structured_output=WORDS)
PROMPT = tokens(150, seed=1).tolist()


class Check:
    """Lets only answers with the given ending pass, and keeps all that it has seen."""

    def __init__(self) -> None:
        self.ending = ""
        self.seen: list[str] = []

    def problem(self, answer: str) -> str | None:
        self.seen.append(answer)
        return None if answer.endswith(self.ending) else f"{answer} does not end with {self.ending}"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Check:
    check = Check()
    monkeypatch.setattr(StructuredOutput, "unenforced", ("ending",), raising=False)
    monkeypatch.setattr(StructuredOutput, "problem", lambda _, answer: check.problem(answer), raising=False)
    return check


def test_drawn_again_until_the_form_is_right(check: Check) -> None:
    engine = BytesEngine(pages=20)
    counts = set()
    for seed in range(12):
        check.ending = ""
        (request,) = engine.add(PROMPT, replace(DRAWN, seed=seed))
        engine.run()
        first = request.completion().text
        check.ending = "f"
        checked = check.seen = []
        before = engine.stats()
        (request,) = engine.add(PROMPT, replace(DRAWN, seed=seed, logprobs=0))
        outputs = []
        while engine.has_work:
            outputs += engine.step()
        assert checked[0] == first
        assert len(checked) <= MAX_DRAWS
        counts.add(len(checked))
        right = [text for text in checked if text.endswith(check.ending)]
        after = engine.stats()
        assert after.invalid_answers - before.invalid_answers == len(checked) - len(right)
        assert after.generated_tokens - before.generated_tokens == sum(len(output.token_ids) for output in outputs)
        # A letter is a token, but for the end of an answer.
        drawn = sum(map(len, checked))
        assert (
            after.generated_tokens + after.discarded_tokens - before.generated_tokens - before.discarded_tokens == drawn
        )
        assert not any(output.text or output.token_ids or output.logprobs for output in outputs[:-1])
        if right:
            answer = request.completion()
            assert checked.index(right[0]) == len(checked) - 1
            assert answer.text == outputs[-1].text == right[0]
            assert outputs[-1].token_ids == answer.token_ids
            assert len(answer.logprobs or ()) == len(outputs[-1].logprobs) == len(answer.token_ids)
            assert outputs[-1].finish_reason == answer.finish_reason == "stop"
        else:
            assert len(checked) == MAX_DRAWS
            assert isinstance(request.error, AnswerError)
            assert outputs[-1].finish_reason == "error"
        assert engine.state().used_pages == 0
    assert len(counts) > 2


def test_an_answer_that_is_ended_before_its_check_counts_as_discarded(check: Check) -> None:
    engine = BytesEngine(pages=20)
    (request,) = engine.add(PROMPT, replace(DRAWN, seed=1))
    while not request.answer_ids:
        engine.step()
    engine.abort(request)
    assert (engine.stats().generated_tokens, engine.stats().discarded_tokens) == (0, 1)
    assert not check.seen


def test_the_draws_do_not_depend_on_other_requests(check: Check) -> None:
    """Nor on preemptions."""
    check.ending = "f"
    asked = [(tokens(60 + 50 * n, seed=n).tolist(), replace(DRAWN, seed=n, n=2)) for n in range(4)]

    def results(engine: BytesEngine, several: bool) -> list[tuple[str, str | None]]:
        requests = []
        for prompt, params in asked:
            requests += engine.add(prompt, params)
            if not several:
                engine.run()
        engine.run()
        return [(one.completion().text if one.error is None else "", one.finish_reason) for one in requests]

    alone = results(BytesEngine(pages=20, max_num_seqs=1, enable_prefix_caching=False), several=False)
    assert results(BytesEngine(pages=20), several=True) == alone
    assert results(BytesEngine(pages=3), several=True) == alone
    assert {reason for _, reason in alone} >= {"stop"}


def test_a_greedy_answer_is_drawn_at_temperature_1(check: Check) -> None:
    check.ending = "nothing"
    engine = BytesEngine(pages=20)
    (request,) = engine.add(PROMPT, replace(GREEDY, ignore_eos=False, structured_output=WORDS, seed=3))
    engine.run()
    assert len(check.seen) == MAX_DRAWS
    assert len(set(check.seen)) > 1
    with pytest.raises(AnswerError, match=f"None of {MAX_DRAWS} answers .* does not end with nothing"):
        raise request.error or AssertionError


def test_a_stream_waits_for_the_right_answer(check: Check) -> None:
    model = LLM.__new__(LLM)
    model.engine = BytesEngine(pages=20)
    model.tokenizer = model.engine.tokenizer
    assert list(model.stream(PROMPT, replace(DRAWN, seed=1))) == check.seen[:1]
    check.ending = "nothing"
    pieces: list[str] = []
    stream = model.stream(PROMPT, replace(DRAWN, seed=1))
    with pytest.raises(AnswerError):
        pieces += stream
    assert not pieces


def test_a_stop_string_cuts_as_without_a_check(check: Check) -> None:
    check.ending = "nothing"
    stopped = []
    engine = BytesEngine(pages=20)
    for seed in range(8):
        (request,) = engine.add(PROMPT, replace(DRAWN, seed=seed, stop=("a", "b", "c", "d")))
        engine.run()
        stopped.append((request.finish_reason, request.completion().text))
    assert stopped == [("stop", "")] * 8
    assert not check.seen
