"""A constraint token by token, the preferences that must not break it, and grammars that requests share."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from faquant.errors import UsageError
from faquant.sampling.sampler import Sampler, sample_rows
from faquant.structured import grammar
from faquant.structured.grammar import Grammars, StructuredOutput
from faquant.structured.grammar_constraint import GrammarConstraint
from oracles.constrained import TOOL, Model, check


def test_an_end_may_come_exactly_where_the_answer_is_complete(model: Model) -> None:
    pattern = re.compile("ab?(cd)*")
    wanted = StructuredOutput(regex=pattern.pattern)
    constraint = model.grammars.constraints(wanted, 20, model.tokenizer.eos_token_ids)()
    text = ""
    for letter in "abcdcd":
        flags = np.unpackbits(constraint.mask(), bitorder="little")[: model.vocab_size]
        complete = pattern.fullmatch(text) is not None
        assert constraint.may_end == complete
        assert not constraint.must_end
        assert all(flags[token] == complete for token in model.tokenizer.eos_token_ids)
        assert not constraint.admits(model.texts.index("z"), 20)
        token = next(token for token in np.flatnonzero(flags).tolist() if model.texts[token] == letter)
        assert constraint.admits(token, 20)
        constraint.accept(token)
        text += letter


def test_trying_a_token_does_not_take_it(model: Model) -> None:
    constraint = model.grammars.constraints(StructuredOutput(regex="ab|cd"), 9, model.tokenizer.eos_token_ids)()
    before = constraint.mask().tolist()
    for letter in "acac":
        assert constraint.admits(model.texts.index(letter), 8)
    assert constraint.mask().tolist() == before
    with pytest.raises(UsageError, match="not admitted"):
        constraint.accept(model.texts.index("a"))


def test_forced_text_has_the_masks_of_llguidance(model: Model) -> None:
    forced = '{"name": "weather", "arguments": {"city": "größe"}}'
    for tail in ("", "[0-9]", "( or |, )more"):
        wanted = StructuredOutput(regex=re.escape(forced) + tail)
        followed = model.grammars.constraints(wanted, 99, model.tokenizer.eos_token_ids)()
        tokens: list[int] = []
        while len(model.tokenizer.decode(tokens)) < len(forced):
            other = model.grammars.constraints(wanted, 99, model.tokenizer.eos_token_ids)()
            for token in tokens:
                assert other.admits(token, 99)
                other.accept(token)
            mask = followed.mask()
            assert mask.tolist() == other.mask().tolist()
            tokens.append(int(np.flatnonzero(np.unpackbits(mask, bitorder="little"))[0]))
            assert followed.admits(tokens[-1], 99)
            followed.accept(tokens[-1])


def test_a_token_that_is_not_forced_ends_the_forced_text(model: Model) -> None:
    wanted = StructuredOutput(regex="wea(ther|r and tear)")
    constraint = model.grammars.constraints(wanted, 9, model.tokenizer.eos_token_ids)()
    constraint.mask()
    letter = model.texts.index("w")
    assert constraint.admits(letter, 9)
    constraint.accept(letter)
    allowed = np.flatnonzero(np.unpackbits(constraint.mask(), bitorder="little"))
    assert {model.texts[token][:1] for token in allowed} == {"e"}


def test_white_space_before_the_next_text_of_the_plan_is_not_part_of_it(byte_level_model: Model) -> None:
    model = byte_level_model
    wanted = StructuredOutput(regex="(dog, ?){2}")
    constraint = model.grammars.constraints(wanted, 99, model.tokenizer.eos_token_ids)()
    assert isinstance(constraint, GrammarConstraint)
    for token in model.tokenizer.encode("dog,", add_special_tokens=False):
        assert constraint.admits(token, 99)
        constraint.accept(token)
    rest = constraint._rest_of_plan(b" do")
    assert rest is not None
    assert model.tokenizer.decode(rest) == "g,"


def test_the_plan_is_followed_if_llguidance_reaches_a_limit(model: Model) -> None:
    sampler = model.sampler(StructuredOutput(json_schema=TOOL), max_tokens=90, temperature=0)
    constraint, preference = sampler.constraint, model.fond_of("a", 0)
    ids = [sampler.sample(preference(step)) for step in range(40)]
    constraint._matcher.consume_token(model.tokenizer.bos_token_id)  # type: ignore[union-attr]
    assert constraint._matcher.is_error()  # type: ignore[union-attr]
    while not sampler.must_end:
        ids.append(sampler.sample(preference(0)))
    check(model.tokenizer.decode(ids), TOOL)
    assert sampler.is_end(sampler.sample(preference(0)))


def test_only_an_end_follows_the_last_token(model: Model) -> None:
    sampler = model.sampler(StructuredOutput(choice=("a",)), max_tokens=9, min_tokens=5, seed=1)
    assert model.answer(sampler, model.fond_of("", 0)) == "a"
    assert sampler.must_end
    assert sampler.is_end(sampler.sample(model.fond_of("z", 0)(0)))
    assert sampler.must_end


def test_penalties_and_bias_do_not_break_the_form(model: Model) -> None:
    quote = model.texts.index('"')
    for step in range(10):
        sampler = model.sampler(
            StructuredOutput(json_schema=TOOL),
            max_tokens=80,
            min_tokens=70,
            seed=step,
            repetition_penalty=3.0,
            presence_penalty=2.0,
            logit_bias={quote: -100.0},
            top_p=0.9,
            top_k=10,
        )
        check(model.answer(sampler, model.fond_of("", step)), TOOL)


def test_an_answer_does_not_depend_on_others_of_its_grammar(byte_level_model: Model) -> None:
    model = byte_level_model
    wanted = StructuredOutput(json_schema=TOOL)
    rows = np.random.default_rng(0).standard_normal((60, 3, model.vocab_size)).astype(np.float32) * 3

    def samplers() -> list[Sampler]:
        return [model.sampler(wanted, max_tokens=60, seed=seed) for seed in range(3)]

    together = samplers()
    steps = []
    for row in rows:
        steps.append(sample_rows(row, together))
        if any(sampler.must_end or sampler.is_end(token) for sampler, token in zip(together, steps[-1], strict=True)):
            break
    for number, sampler in enumerate(samplers()):
        assert [sampler.sample(row[number]) for row in rows[: len(steps)]] == [step[number] for step in steps]


def test_compiled_grammars_are_cached_and_evicted(byte_level_model: Model) -> None:
    grammars = Grammars(byte_level_model.tokenizer, byte_level_model.vocab_size, capacity=2)
    first, second, third = (StructuredOutput(choice=(text,)) for text in "abc")
    for wanted in (first, second, first, third):
        grammars.constraints(wanted, 5, [2])
    assert list(grammars._compiled) == [first, third]


def test_a_grammar_is_compiled_once_for_concurrent_requests(
    byte_level_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = [], threading.Event()

    class Slow(grammar.CompiledGrammar):
        def __init__(self, vocabulary: Any, wanted: StructuredOutput) -> None:
            begun.append(wanted)
            assert go_on.wait(30)
            super().__init__(vocabulary, wanted)

    monkeypatch.setattr(grammar, "CompiledGrammar", Slow)
    grammars = Grammars(byte_level_model.tokenizer, byte_level_model.vocab_size)
    good, bad = StructuredOutput(choice=("a",)), StructuredOutput(regex="(")
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(grammars.constraints, wanted, 5, [2]) for wanted in (good, bad) * 3]
        while len(begun) < 2:
            time.sleep(0.001)
        go_on.set()
        assert all(each.result()().mask() is not None for each in asked[::2])
        for each in asked[1::2]:
            with pytest.raises(UsageError, match="cannot be enforced"):
                each.result()
    assert sorted(map(repr, begun)) == sorted(map(repr, (good, bad)))
    with pytest.raises(UsageError):
        grammars.constraints(bad, 5, [2])
    assert list(grammars._compiled) == [good]
