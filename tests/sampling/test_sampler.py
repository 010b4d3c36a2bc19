"""The sampler of a request: tokens, seeds and refusals, compared with the plain definition."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faquant.errors import FaquantError, UsageError
from faquant.sampling.draw import draw_masked
from faquant.sampling.sampler import Sampler, SamplingParams, sample_rows, uniform
from oracles.sampling import PARAMS, plain_distribution, plain_sample, plain_scores


@given(values=st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 2.0]), min_size=1, max_size=30))
def test_greedy_takes_the_lowest_id_of_the_likeliest(values: list[float]) -> None:
    if max(values) == -math.inf:
        return
    logits = torch.tensor(values)
    params = SamplingParams(temperature=0, top_k=3, top_p=0.5, min_p=0.5)
    assert Sampler(params).sample(logits) == values.index(max(values))


def test_greedy_obeys_the_repetition_penalty() -> None:
    logits = torch.tensor([2.0, 1.9, -1.0])
    params = SamplingParams(temperature=0, repetition_penalty=1.5)
    assert Sampler(params).sample(logits) == 0
    assert Sampler(params, [0, 0, 2]).sample(logits) == 1
    assert logits.tolist() == torch.tensor([2.0, 1.9, -1.0]).tolist()


@given(seed=st.integers(-(2**63), 2**64 - 1), step=st.integers(0, 2**40))
def test_uniform_is_a_function_into_the_unit_interval(seed: int, step: int) -> None:
    assert 0.0 <= uniform(seed, step) < 1.0
    assert uniform(seed, step) == uniform(seed, step)


def test_uniform_numbers_are_uniform_over_steps_and_seeds() -> None:
    for numbers in ([uniform(5, step) for step in range(10_000)], [uniform(seed, 0) for seed in range(10_000)]):
        counts = torch.histc(torch.tensor(numbers), 20, 0.0, 1.0)
        assert float(((counts - 500) ** 2 / 500).sum()) < 19 + 4 * math.sqrt(38)
        assert len(set(numbers)) == 10_000


def test_the_draws_of_a_seed_do_not_change() -> None:
    sampler = Sampler(SamplingParams(seed=1234))
    assert [sampler.sample(torch.zeros(100)) for _ in range(8)] == [int(uniform(1234, n) * 100) for n in range(8)]
    assert uniform(1234, 0) == 0.7522309183959237


def test_a_request_does_not_depend_on_others() -> None:
    rows = torch.randn(20, 500, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(seed=7, top_p=0.95, repetition_penalty=1.2)
    alone = Sampler(params, [1, 2, 3])
    tokens = [alone.sample(row) for row in rows]
    beside, neighbour = Sampler(params, [1, 2, 3]), Sampler(SamplingParams(seed=8))
    again = []
    for index, row in enumerate(rows):
        torch.manual_seed(index)
        neighbour.sample(torch.stack((row, row * 2))[1])
        again.append(beside.sample(torch.stack((row * 3, row))[1]))
    assert again == tokens
    assert [Sampler(SamplingParams(seed=8)).sample(row) for row in rows] != tokens


def test_sampling_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    Sampler(SamplingParams()).sample(torch.zeros(50))
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_seed_requests_differ() -> None:
    samplers = [Sampler(SamplingParams()) for _ in range(4)]
    assert len({sampler.seed for sampler in samplers}) == 4
    replay = Sampler(SamplingParams(seed=samplers[0].seed))
    assert [samplers[0].sample(torch.zeros(999)) for _ in range(5)] == [
        replay.sample(torch.zeros(999)) for _ in range(5)
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_any_float_dtype_is_accepted(dtype: torch.dtype) -> None:
    logits = torch.tensor([0.0, 50.0], dtype=dtype)
    assert Sampler(SamplingParams()).sample(logits) == 1
    if dtype != torch.bfloat16:
        assert Sampler(SamplingParams()).sample(logits.numpy()) == 1


@pytest.mark.parametrize("values", [[math.nan, 1.0], [1.0, math.nan], [math.inf, 1.0], [-math.inf, -math.inf], []])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_invalid_logits_are_refused(values: list[float], temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature))
    with pytest.raises(FaquantError, match="unusable logits"):
        sampler.sample(torch.tensor(values))
    assert sampler.step == 0


@pytest.mark.parametrize(
    "logits", [torch.zeros(1, 5), torch.zeros(5, dtype=torch.long), torch.tensor(1.0), np.zeros(5, np.int64)]
)
def test_logits_of_the_wrong_kind_are_refused(logits: Any) -> None:
    with pytest.raises(UsageError, match="one row of floats"):
        Sampler(SamplingParams()).sample(logits)


@given(
    seed=st.integers(0, 2**32),
    base=PARAMS,
    presence=st.sampled_from([0.0, -2.0, 0.7]),
    frequency=st.sampled_from([0.0, -0.3, 2.0]),
    bias=st.dictionaries(st.integers(0, 49), st.floats(-100, 100), max_size=5),
    minimum=st.integers(0, 9),
    greedy=st.booleans(),
    prompt=st.lists(st.integers(0, 49), max_size=9),
)
@settings(max_examples=200, deadline=None)
def test_whole_answers_equal_the_plain_definition(
    seed: int,
    base: SamplingParams,
    presence: float,
    frequency: float,
    bias: dict[int, float],
    minimum: int,
    greedy: bool,
    prompt: list[int],
) -> None:
    params = replace(
        base,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=bias,
        min_tokens=minimum,
        stop_token_ids=(11, 12),
        temperature=0.0 if greedy else base.temperature,
        seed=seed,
    )
    rows = np.random.default_rng(seed).standard_normal((12, 50)).astype(np.float32) * 2
    sampler = Sampler(params, prompt, vocab_size=50, end_token_ids=[3])
    answer: list[int] = []
    for row in rows:
        wanted = plain_sample(row, params, prompt, answer, {3, 11, 12})
        answer.append(sampler.sample(row))
        assert answer[-1] == wanted


def test_penalties_of_openai_count_the_answer_only() -> None:
    params = SamplingParams(temperature=0, frequency_penalty=0.5, presence_penalty=1.0)
    sampler = Sampler(params, [0, 0, 0])
    logits = torch.tensor([4.0, 2.9, 2.0])
    # 4 − 1 − 0.5 · n for the n-th repetition: 4, 2.5, then the second's 2.9, 1.4, …
    assert [sampler.sample(logits) for _ in range(5)] == [0, 1, 0, 0, 2]
    wanted = plain_scores(logits.numpy(), params, [0, 0, 0], [0, 1, 0, 0, 2], set())
    assert logits.tolist() == [4.0, pytest.approx(2.9), 2.0]
    scores = logits.numpy()
    edit = sampler._edit(scores)
    assert scores.tolist() == pytest.approx(wanted.tolist())
    assert edit is not None
    edit.undo()
    assert scores.tolist() == [4.0, pytest.approx(2.9), 2.0]


EDITS = [
    SamplingParams(logit_bias={1: 5.0}),
    SamplingParams(min_tokens=3, stop_token_ids=(1,)),
    SamplingParams(repetition_penalty=1.5),
]


@pytest.mark.parametrize("params", EDITS)
def test_the_callers_logits_do_not_change(params: SamplingParams) -> None:
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    locked = logits.copy()
    locked.flags.writeable = False
    for scores in (logits, locked, torch.from_numpy(logits)):
        Sampler(params, [1]).sample(scores)
        assert np.asarray(scores).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("params", EDITS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_edit_hides_invalid_logits(params: SamplingParams, bad: float) -> None:
    logits = np.array([[1.0, 2.0, 3.0], [1.0, bad, 3.0]], np.float32)
    samplers = [Sampler(params, [1]) for _ in range(2)]
    with pytest.raises(FaquantError, match="unusable logits"):
        sample_rows(logits, samplers)
    assert logits[0].tolist() == [1.0, 2.0, 3.0]
    assert [sampler.step for sampler in samplers] == [0, 0]


def test_a_penalized_logit_is_clipped_to_the_largest_float() -> None:
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=0.01), [0, 1])
    assert sampler.sample(np.array([3e38, -3e38, 1.0], np.float32)) == 0


class Some:
    """A constraint that always admits the same tokens."""

    shown: frozenset[int] = frozenset()
    unwatched_from = None
    may_end = must_end = is_free = False

    def __init__(self, tokens: list[int], size: int) -> None:
        self.tokens, self.size, self.masks = tokens, size, 0

    def mask(self) -> Any:
        self.masks += 1
        flags = np.zeros(-(-self.size // 8) * 8, np.uint8)
        flags[self.tokens] = 1
        return np.packbits(flags, bitorder="little")

    def admits(self, token: int, left: int) -> bool:
        return token in self.tokens

    def fallback(self) -> int:
        return self.tokens[0]

    def accept(self, token: int) -> None:
        pass


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.8}, {"top_k": 3}, {"min_p": 0.2}])
def test_admitted_tokens_are_drawn_as_if_there_were_no_other_tokens(filters: dict[str, Any]) -> None:
    logits = np.array([2.0, 1.5, 3.0, 0.0, 1.0, 2.5, -1.0, 0.5], np.float32)
    tokens, draws = [0, 1, 3, 4, 6], 4000
    params = SamplingParams(seed=3, max_tokens=draws, **filters)
    some = Some(tokens, logits.size)
    sampler = Sampler(params, constraint=some)
    counts = np.bincount([sampler.sample(logits) for _ in range(draws)], minlength=logits.size)
    places, probabilities = plain_distribution(logits[tokens], params)
    ids = np.array(tokens)[places]
    assert np.flatnonzero(counts).tolist() == ids.tolist()
    assert counts[ids] / draws == pytest.approx(probabilities, abs=2 / math.sqrt(draws))
    outside = 1 - np.exp(logits[tokens]).sum() / np.exp(logits).sum()
    share = 1.0 if filters else outside  # a mask is made only for what was drawn outside of it
    assert some.masks / draws == pytest.approx(share, abs=0.03)


class Refusing(Some):
    """Admits only every third of its tokens, as if the others left too few tokens for an end."""

    def admits(self, token: int, left: int) -> bool:
        return token in self.tokens[::3]


def always_masked(row: Any, sampler: Sampler, constraint: Some) -> int:
    """The token that is drawn if the mask is computed first."""
    mask = constraint.mask()
    for attempt in range(4):
        uniforms = [uniform(sampler.seed, sampler.step, sampler.index, attempt)]
        (token,) = draw_masked(row[None], [0], [mask], [sampler.params], uniforms)
        if token < 0 or constraint.admits(token, 0):
            break
        mask[token >> 3] &= 0xFF ^ 1 << (token & 7)
    return token if token >= 0 and constraint.admits(token, 0) else constraint.fallback()


@pytest.mark.parametrize("kind", [Some, Refusing])
@pytest.mark.parametrize("filters", [{"top_p": 0.9}, {"top_k": 1}, {"min_p": 0.3}, {"top_p": 0.95, "top_k": 20}])
def test_filtered_answers_are_those_of_masks_that_are_computed_first(kind: Any, filters: dict[str, Any]) -> None:
    """Also where no mask is computed, because the likeliest token alone passes the filters."""
    generator = np.random.default_rng(5)
    rows = (generator.standard_normal((400, 300)) * np.linspace(0.5, 12, 400)[:, None]).astype(np.float32)
    constraint, other = kind(list(range(0, 300, 2)), 300), kind(list(range(0, 300, 2)), 300)
    sampler = Sampler(SamplingParams(seed=1, max_tokens=len(rows), **filters), constraint=constraint)
    for row in rows:
        wanted = always_masked(row, sampler, other)
        assert sampler.sample(row) == wanted
    assert 0 < constraint.masks < other.masks


def test_no_end_before_min_tokens() -> None:
    logits = torch.tensor([1.0, 5.0, 6.0, 4.0])
    sampler = Sampler(SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(2,)), end_token_ids=(1,))
    assert [sampler.sample(logits) for _ in range(3)] == [3, 3, 2]
    assert [sampler.is_end(token) for token in range(4)] == [False, True, True, False]
    going_on = Sampler(SamplingParams(temperature=0, ignore_eos=True, min_tokens=2), end_token_ids=(1, 2))
    assert going_on.sample(logits) == 2
    assert not going_on.is_end(2)


@pytest.mark.parametrize("params", [SamplingParams(logit_bias={50: 1.0}), SamplingParams(stop_token_ids=(3, 50))])
def test_tokens_outside_the_vocabulary_are_refused(params: SamplingParams) -> None:
    with pytest.raises(UsageError, match="the token 50, but the vocabulary has only 50 tokens"):
        Sampler(params, vocab_size=50)
    Sampler(params, vocab_size=51)


def test_each_of_n_answers_has_its_own_draws() -> None:
    logits = torch.zeros(1000)

    def answer(index: int) -> list[int]:
        sampler = Sampler(SamplingParams(seed=5, n=3)).for_answer(index)
        return [sampler.sample(logits) for _ in range(6)]

    assert answer(0) == [int(uniform(5, step) * 1000) for step in range(6)]
    assert len({tuple(answer(index)) for index in range(3)}) == 3
    assert answer(2) == answer(2)


def test_the_answers_of_a_request_share_no_mutable_state() -> None:
    params = SamplingParams(seed=5, n=3, repetition_penalty=1.5, frequency_penalty=1.0, logit_bias={3: 2.0}, logprobs=1)
    prompt = [1, 2, 2, 3]
    rows = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    samplers = [first := Sampler(params, prompt, vocab_size=30), first.for_answer(1), first.for_answer(2)]
    together = [[sampler.sample(row) for sampler in samplers] for row in rows]
    for index, tokens in enumerate(zip(*together, strict=True)):
        lone = Sampler(params, prompt, vocab_size=30).for_answer(index)
        assert tuple(lone.sample(row) for row in rows) == tokens
        assert lone.logprobs == samplers[index].logprobs
    assert samplers[0].for_answer(0).sample(rows[0]) == together[0][0], "also from a sampler that has advanced"


MANY = [
    SamplingParams(temperature=0),
    SamplingParams(seed=1),
    SamplingParams(temperature=0, frequency_penalty=1.0),
    SamplingParams(seed=2, top_p=0.9),
    SamplingParams(temperature=0, min_tokens=3, stop_token_ids=(5,)),
    SamplingParams(seed=3, top_k=5, logit_bias={1: 4.0}),
]


@pytest.mark.parametrize("chosen", [MANY, MANY[:1] * 4, MANY[::-1], [MANY[0], MANY[4]]])
def test_rows_together_equal_rows_alone(chosen: list[SamplingParams]) -> None:
    rows = torch.randn(7, len(chosen), 3000, generator=torch.Generator().manual_seed(4))
    together, alone = [Sampler(params) for params in chosen], [Sampler(params) for params in chosen]
    for step in rows:
        assert sample_rows(step, together) == [sampler.sample(row) for sampler, row in zip(alone, step, strict=True)]
    assert sample_rows(torch.zeros(0, 10), []) == []


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams()])
def test_an_invalid_row_advances_no_sampler(params: SamplingParams) -> None:
    samplers = [Sampler(params), Sampler(params)]
    with pytest.raises(FaquantError, match="unusable logits"):
        sample_rows(torch.tensor([[1.0, 2.0], [math.nan, 1.0]]), samplers)
    assert [sampler.step for sampler in samplers] == [0, 0]
    with pytest.raises(UsageError, match="one row of floats"):
        sample_rows(torch.zeros(3, 5), samplers)


@settings(max_examples=200)
@given(data=st.data())
def test_a_tensor_whose_likeliest_tokens_decide_has_the_tokens_of_its_whole_rows(data: st.DataObject) -> None:
    """Engines on a GPU copy only these tokens; ties and unusable rows are left to the whole row."""
    rows = data.draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    logits = torch.randn(rows, 90, generator=generator)
    if data.draw(st.booleans()):
        logits = logits.round()
    params = [
        SamplingParams(
            temperature=data.draw(st.sampled_from([0.0, 0.8])),
            top_k=data.draw(st.sampled_from([0, 1, 2, 7, 64, 80])),
            top_p=data.draw(st.sampled_from([1.0, 0.7])),
            min_p=data.draw(st.sampled_from([0.0, 0.1])),
            repetition_penalty=data.draw(st.sampled_from([1.0, 1.3])),
            logprobs=data.draw(st.sampled_from([None, 2])),
            seed=3,
        )
        for _ in range(rows)
    ]
    ours, theirs = ([Sampler(one, [1, 2, 3]) for one in params] for _ in range(2))
    for _ in range(2):
        assert sample_rows(logits, ours) == sample_rows(logits.numpy(), theirs)
    assert [one.logprobs for one in ours] == [one.logprobs for one in theirs]


def test_an_unusable_row_of_a_tensor_leaves_all_samplers_unchanged() -> None:
    logits = torch.zeros(2, 90)
    logits[0, 5], logits[1, 7] = 1.0, math.nan
    samplers = [Sampler(SamplingParams(temperature=0)) for _ in range(2)]
    with pytest.raises(FaquantError, match="unusable logits"):
        sample_rows(logits, samplers)
    assert [one.step for one in samplers] == [0, 0]
