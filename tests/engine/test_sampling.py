"""Sampling against the logits processors of transformers, the plain definition, and as a distribution."""

import math
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from faquant.engine.draw import TokenLogprobs, distribution, draw, log_probabilities
from faquant.engine.sampling import Sampler, SamplingParams, sample_rows, uniform
from faquant.errors import FaquantError, UsageError
from faquant.kernels import cpu
from oracles.sampling import plain_distribution, plain_sample, plain_scores

INF = math.inf
NAN = math.nan


def transformers_probabilities(logits: torch.Tensor, params: SamplingParams, history: list[int]) -> torch.Tensor:
    """What transformers makes of logits [vocab]: probabilities [vocab], computed in float64 to keep rounding out."""
    scores, ids = logits.double()[None], torch.tensor([history], dtype=torch.long)
    if params.repetition_penalty != 1.0 and history:
        scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
    scores = TemperatureLogitsWarper(params.temperature)(ids, scores)
    if params.top_k > 0:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1.0:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    if params.min_p > 0.0:
        scores = MinPLogitsWarper(params.min_p)(ids, scores)
    return torch.softmax(scores[0], 0)


def assume_no_edge(logits: torch.Tensor, params: SamplingParams, history: list[int]) -> None:
    """Leave out what only a rounding decides: how many tokens reach top_p."""
    before = transformers_probabilities(logits, replace(params, top_p=1.0, min_p=0.0), history)
    assume((before.sort(descending=True).values.cumsum(0) - params.top_p).abs().min() > 1e-9)


def our_probabilities(logits: torch.Tensor, params: SamplingParams, history: list[int]) -> torch.Tensor:
    sampler = Sampler(params, history)
    scores = logits.double().numpy()
    sampler._edit(scores)
    ids, probabilities = distribution(scores, params)
    assert ids.tolist() == sorted(ids.tolist())
    everywhere = torch.zeros(logits.numel(), dtype=torch.float64)
    return everywhere.index_copy(0, torch.from_numpy(ids), torch.from_numpy(probabilities))


def token_at(logits: torch.Tensor, params: SamplingParams, point: float) -> int:
    return draw(logits[None].numpy(), [params], [point])[0]


PARAMS = st.builds(
    SamplingParams,
    temperature=st.floats(0.05, 5.0),
    top_k=st.sampled_from([-1, 0, 1, 2, 5, 40, 10_000]),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1.0)),
    min_p=st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
    repetition_penalty=st.one_of(st.just(1.0), st.floats(0.5, 2.0)),
)


@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 2, 63, 64, 65, 300, 5000]),
    params=PARAMS,
    history=st.lists(st.integers(0, 299), max_size=8),
    ruled_out=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_kept_tokens_and_probabilities_equal_transformers(
    seed: int, size: int, params: SamplingParams, history: list[int], ruled_out: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, generator=generator) * 3
    if ruled_out:
        logits[torch.randperm(size, generator=generator)[: size // 2]] = -INF
    history = [token for token in history if token < size]
    if params.top_p < 1.0:
        assume_no_edge(logits, params, history)
    ours, theirs = our_probabilities(logits, params, history), transformers_probabilities(logits, params, history)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    # A weight below what float64 holds counts as ruled out here.
    assert torch.equal(ours > 0, theirs > 0)


@given(values=st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=40), params=PARAMS)
@settings(max_examples=200, deadline=None)
def test_ties_keep_as_many_tokens_as_transformers(values: list[float], params: SamplingParams) -> None:
    logits = torch.tensor(values)
    ours, theirs = our_probabilities(logits, params, []), transformers_probabilities(logits, params, [])
    if params.top_p == 1.0:
        torch.testing.assert_close(ours, theirs)
    else:  # which of equal tokens top-p keeps differs, never how many of which weight
        assume_no_edge(logits, params, [])
        torch.testing.assert_close(ours.sort().values, theirs.sort().values)


def test_ties_at_the_edge_of_top_p_go_to_the_lower_ids() -> None:
    ids, probabilities = distribution(np.array([0.0, 1.0, 1.0, 1.0, 1.0]), SamplingParams(top_p=0.3))
    assert ids.tolist() == [1, 2]
    assert probabilities.tolist() == [0.5, 0.5]


def test_ties_at_the_edge_of_top_k_all_stay() -> None:
    ids, _ = distribution(np.array([3.0, 1.0, 1.0, 0.0, 1.0]), SamplingParams(top_k=2))
    assert ids.tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999, 0.9999999])
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 4.0])
def test_nucleus_of_a_large_vocabulary_equals_a_full_sort(top_p: float, scale: float) -> None:
    logits = torch.randn(50_000, generator=torch.Generator().manual_seed(3)) * scale
    ids, _ = distribution(logits.numpy(), SamplingParams(top_p=top_p))
    weights = torch.softmax(logits.double(), 0)
    order = torch.sort(weights, descending=True, stable=True)
    before = torch.cat((torch.zeros(1), torch.cumsum(order.values, 0)[:-1]))
    assert ids.tolist() == order.indices[before < top_p].sort().values.tolist()


@given(values=st.lists(st.sampled_from([-INF, -1.0, 0.0, 2.0]), min_size=1, max_size=30))
def test_greedy_takes_the_lowest_of_the_best(values: list[float]) -> None:
    if max(values) == -INF:
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


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7, top_k=6),
        SamplingParams(temperature=1.5, top_p=0.8),
        SamplingParams(min_p=0.2),
    ],
)
def test_frequencies_match_the_distribution(params: SamplingParams) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1)) * 1.5
    draws = 5_000
    counts = torch.zeros(12, dtype=torch.float64)
    for step in range(draws):
        counts[token_at(logits, params, uniform(11, step))] += 1
    wanted = our_probabilities(logits, params, []) * draws
    assert counts[wanted == 0].sum() == 0
    kept = wanted > 0
    chi_square = float(((counts[kept] - wanted[kept]) ** 2 / wanted[kept]).sum())
    freedom = int(kept.sum()) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)  # four standard deviations


@given(seed=st.integers(-(2**63), 2**64 - 1), step=st.integers(0, 2**40))
def test_uniform_is_a_function_into_the_unit_interval(seed: int, step: int) -> None:
    assert 0.0 <= uniform(seed, step) < 1.0
    assert uniform(seed, step) == uniform(seed, step)


def test_uniform_numbers_are_uniform_over_steps_and_seeds() -> None:
    for numbers in ([uniform(5, step) for step in range(10_000)], [uniform(seed, 0) for seed in range(10_000)]):
        counts = torch.histc(torch.tensor(numbers), 20, 0.0, 1.0)
        assert float(((counts - 500) ** 2 / 500).sum()) < 19 + 4 * math.sqrt(38)
        assert len(set(numbers)) == 10_000


def test_the_draws_of_a_seed_stay_what_they_are() -> None:
    sampler = Sampler(SamplingParams(seed=1234))
    assert [sampler.sample(torch.zeros(100)) for _ in range(8)] == [int(uniform(1234, n) * 100) for n in range(8)]
    assert uniform(1234, 0) == 0.7522309183959237


def test_a_request_depends_on_nothing_beside_it() -> None:
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


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000, 151_936])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_instruction_set_threads_and_batch_change_nothing(size: int, dtype: Any) -> None:
    generator = np.random.default_rng(size)
    rows = (generator.standard_normal((5, size)) * [[0.1], [2.0], [2.0], [9.0], [300.0]]).astype(dtype)
    rows[2, generator.random(size) < 0.9] = -INF
    rows[2, -1] = 8.0
    params = [
        SamplingParams(),
        SamplingParams(top_p=0.9),
        SamplingParams(temperature=0.01, top_p=0.99),
        SamplingParams(top_k=50, top_p=0.8),
        SamplingParams(min_p=0.01, temperature=3.0),
    ]
    uniforms, counts = [0.1, 0.9, 0.5, 0.99, 1.0 - 2.0**-53], [20, None, 5, 0, 3]
    results = []
    before = torch.get_num_threads()
    try:
        for isa in cpu.available_isas():
            for threads in (1, 2, 4):
                torch.set_num_threads(threads)
                tokens = draw(rows, params, uniforms, isa)
                results.append((tokens, log_probabilities(rows, tokens, counts, isa)))
            alone = [draw(rows[i : i + 1], params[i : i + 1], uniforms[i : i + 1], isa)[0] for i in range(5)]
            logs = [log_probabilities(rows[i : i + 1], [alone[i]], counts[i : i + 1], isa)[0] for i in range(5)]
            results.append((alone, logs))
    finally:
        torch.set_num_threads(before)
    assert all(result == results[0] for result in results)
    for row, one in zip(rows, params, strict=True):
        kept = [distribution(row, one, isa) for isa in cpu.available_isas()]
        assert all(np.array_equal(ids, kept[0][0]) for ids, _ in kept)
        assert all(np.array_equal(weights, kept[0][1]) for _, weights in kept)


@pytest.mark.parametrize("isa", cpu.available_isas())
def test_weights_are_those_of_exp(isa: str) -> None:
    scores = np.concatenate(([0.0], -np.logspace(-12, 2.85, 5_000)))
    _, probabilities = distribution(scores, SamplingParams(), isa)
    exact = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(probabilities, exact, rtol=3e-13)
    beyond = np.array([0.0, -740.0, -745.0, -746.0, -1e300, -INF])
    np.testing.assert_allclose(distribution(beyond, SamplingParams(), isa)[1], np.exp(beyond), rtol=1e-9, atol=5e-324)


@pytest.mark.parametrize("scores", [np.zeros((2, 5), np.float16), np.zeros((2, 10), np.float32)[:, ::2], np.zeros(5)])
def test_rows_that_the_kernels_cannot_read_are_refused(scores: Any) -> None:
    with pytest.raises(ValueError, match="scores must be contiguous"):
        draw(scores, [SamplingParams()] * 2, [0.5] * 2)


def test_without_a_seed_requests_differ() -> None:
    samplers = [Sampler(SamplingParams()) for _ in range(4)]
    assert len({sampler.seed for sampler in samplers}) == 4
    replay = Sampler(SamplingParams(seed=samplers[0].seed))
    assert [samplers[0].sample(torch.zeros(999)) for _ in range(5)] == [
        replay.sample(torch.zeros(999)) for _ in range(5)
    ]


@pytest.mark.parametrize("point", [0.0, 0.25, 0.5, 1.0 - 2.0**-53])
def test_a_token_ruled_out_is_never_drawn(point: float) -> None:
    logits = torch.tensor([-INF, 0.0, -INF, -1000.0, 0.0, -INF])
    assert token_at(logits, SamplingParams(), point) in (1, 4)
    assert token_at(logits, SamplingParams(temperature=1e-300), point) in (1, 4)
    assert token_at(logits, SamplingParams(temperature=5e-324), point) in (1, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_any_float_dtype_is_taken(dtype: torch.dtype) -> None:
    logits = torch.tensor([0.0, 50.0], dtype=dtype)
    assert Sampler(SamplingParams()).sample(logits) == 1
    if dtype != torch.bfloat16:
        assert Sampler(SamplingParams()).sample(logits.numpy()) == 1


@pytest.mark.parametrize("values", [[NAN, 1.0], [1.0, NAN], [INF, 1.0], [-INF, -INF], []])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_distribution_are_refused(values: list[float], temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature))
    with pytest.raises(FaquantError, match="no usable logits"):
        sampler.sample(torch.tensor(values))
    assert sampler.step == 0


@pytest.mark.parametrize(
    "logits", [torch.zeros(1, 5), torch.zeros(5, dtype=torch.long), torch.tensor(1.0), np.zeros(5, np.int64)]
)
def test_logits_of_the_wrong_kind_are_refused(logits: Any) -> None:
    with pytest.raises(UsageError, match="one row of floats"):
        Sampler(SamplingParams()).sample(logits)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", value) for value in (-0.1, NAN, INF, "1", True, None, 10**400)),
        *(("top_p", value) for value in (0.0, -0.5, 1.1, NAN, "0.5")),
        *(("min_p", value) for value in (-0.1, 1.1, NAN)),
        *(("repetition_penalty", value) for value in (0.0, -1.0, NAN, INF, 1000.0)),
        *(("top_k", value) for value in (-2, 1.5, True, 10**40)),
        *(("max_tokens", value) for value in (0, -1, 1.0, None)),
        *(("seed", value) for value in (1.5, "1", 2**64, -(2**63) - 1, True)),
        *(("logprobs", value) for value in (-1, 21, 1.0, True)),
        *(("stop", value) for value in ("", [""], [1], 5, None, {"a"}, b"x")),
        *(("ignore_eos", value) for value in (1, "no", None)),
        *((name, value) for name in ("presence_penalty", "frequency_penalty") for value in (-2.1, 2.1, NAN, "1", None)),
        *(("n", value) for value in (0, 129, 1.0, True, None)),
        *(("min_tokens", value) for value in (-1, 129, 1.0, None)),
        *(("stop_token_ids", value) for value in (5, "5", ["5"], [-1], [True], [1.0], [2**32], None, {5})),
        *(("logit_bias", value) for value in ({"5": 1.0}, {5: 100.1}, {5: NAN}, {5: "1"}, {-1: 1.0}, {True: 1.0})),
        *(("logit_bias", value) for value in (5, None, [(1, 2.0)], ((1, 2.0), (1, 3.0)), ((1,),), {2**32: 1.0})),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"^{field} must be .* not "):
        SamplingParams(**{field: value})


def test_a_number_that_python_does_not_print_is_refused_too() -> None:
    with pytest.raises(UsageError, match="a larger number"):
        SamplingParams(top_k=10**6000)
    with pytest.raises(UsageError, match="a larger number"):
        SamplingParams(logit_bias={5: 10**6000})


def test_too_many_stop_tokens_are_refused() -> None:
    with pytest.raises(UsageError, match="at most 1024 tokens"):
        SamplingParams(stop_token_ids=tuple(range(1025)))


@pytest.mark.parametrize("stop", [["x"] * 65, "x" * 1025])
def test_too_much_to_stop_at_is_refused(stop: Any) -> None:
    with pytest.raises(UsageError, match="at most 64 strings of 1024"):
        SamplingParams(stop=stop)


def test_values_are_normalised() -> None:
    params = SamplingParams(temperature=1, top_k=-1, stop="END", seed=0)  # type: ignore[arg-type]
    assert isinstance(params.temperature, float)
    assert params.stop == ("END",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
    assert hash(SamplingParams()) == hash(SamplingParams())


def test_mappings_and_lists_cannot_change_afterwards() -> None:
    bias = {7: 1, 3: -2.5}
    params = SamplingParams(logit_bias=bias, stop_token_ids=[4, 2, 4])  # type: ignore[arg-type]
    bias[7] = 5
    assert params.logit_bias == ((3, -2.5), (7, 1.0))
    assert params.stop_token_ids == (4, 2)
    assert replace(params, n=2).logit_bias == params.logit_bias
    assert pickle.loads(pickle.dumps(params)) == params
    assert hash(params) == hash(SamplingParams(logit_bias={3: -2.5, 7: 1.0}, stop_token_ids=(4, 2)))


def log_probabilities_of(logits: torch.Tensor, token: int, count: int) -> TokenLogprobs:
    """Of one row, behind one that wants none."""
    nothing, found = log_probabilities(torch.stack((-logits, logits)).numpy(), [0, token], [None, count])
    assert nothing is None
    assert found is not None
    return found


def test_log_probabilities_are_those_of_the_model() -> None:
    logits = torch.tensor([1.0, 3.0, -INF, 3.0, 2.0])
    logs = torch.log_softmax(logits.double(), 0).tolist()
    assert log_probabilities_of(logits, 0, 0) == (pytest.approx(logs[0]), [])
    ruled_out, top = log_probabilities_of(logits, 2, 3)
    assert ruled_out == -INF
    assert [token for token, _ in top] == [1, 3, 4]
    assert [value for _, value in top] == pytest.approx([logs[1], logs[3], logs[4]])
    assert [token for token, _ in log_probabilities_of(logits, 0, 1)[1]] == [1]
    assert [token for token, _ in log_probabilities_of(logits, 0, 20)[1]] == [1, 3, 4, 0]  # nothing that is ruled out


@given(size=st.sampled_from([1, 20, 300, 50_000]), count=st.integers(0, 20), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_the_likeliest_tokens_equal_a_full_sort(size: int, count: int, seed: int) -> None:
    logits = torch.randint(-9, 10, (size,), generator=torch.Generator().manual_seed(seed)).float() / 3  # many ties
    logs = torch.log_softmax(logits.double(), 0)
    values, ids = torch.sort(logs, descending=True, stable=True)
    top = log_probabilities_of(logits, size - 1, count)[1]
    assert [token for token, _ in top] == ids[:count].tolist()
    assert [value for _, value in top] == pytest.approx(values[:count].tolist(), rel=1e-12)


LARGE = st.builds(
    SamplingParams,
    temperature=st.one_of(st.sampled_from([1e-300, 1e-30, 0.01, 1.0, 100.0, 1e30, 1e300]), st.floats(0.3, 3.0)),
    top_k=st.sampled_from([0, 1, 40, 2_000, 20_000]),
    top_p=st.one_of(st.sampled_from([1.0, 0.95, 0.5, 1e-9, 1.0 - 1e-12]), st.floats(0.01, 1.0)),
    min_p=st.one_of(st.just(0.0), st.sampled_from([1e-300, 0.05, 1.0])),
)


@given(
    size=st.integers(2049, 60_000),
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([0.0, 0.01, 0.5, 2.0, 5.0, 50.0, 1e30]),
    tied=st.booleans(),
    ruled_out=st.sampled_from([0.0, 0.5, 0.999]),
    dtype=st.sampled_from([np.float32, np.float64]),
    params=LARGE,
)
@settings(max_examples=300, deadline=None)
def test_a_large_vocabulary_equals_the_plain_definition(
    size: int, seed: int, scale: float, tied: bool, ruled_out: float, dtype: Any, params: SamplingParams
) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.standard_normal(size) * scale
    if tied:
        scores = np.round(scores)
    scores[generator.random(size) < ruled_out] = -INF
    scores[generator.integers(size)] = 3 * scale
    scores = scores.astype(np.float32).astype(dtype)
    ids, probabilities = distribution(scores, params)
    wanted_ids, wanted = plain_distribution(scores, params)
    everywhere, wanted_everywhere = np.zeros(size), np.zeros(size)
    everywhere[ids], wanted_everywhere[wanted_ids] = probabilities, wanted
    if np.array_equal(everywhere > 0, wanted_everywhere > 0):
        np.testing.assert_allclose(everywhere, wanted_everywhere, rtol=1e-9, atol=1e-300)
    else:  # equal weights add up to top_p, but for the last bit of their sums
        differs = np.flatnonzero((everywhere > 0) != (wanted_everywhere > 0))
        assert differs.size == 1 or params.min_p == 1.0
        assert params.top_p < 1.0


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
def test_the_callers_logits_stay_as_they_are(params: SamplingParams) -> None:
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    locked = logits.copy()
    locked.flags.writeable = False
    for scores in (logits, locked, torch.from_numpy(logits)):
        Sampler(params, [1]).sample(scores)
        assert np.asarray(scores).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("params", EDITS)
@pytest.mark.parametrize("bad", [NAN, INF])
def test_no_change_hides_logits_that_are_no_distribution(params: SamplingParams, bad: float) -> None:
    logits = np.array([[1.0, 2.0, 3.0], [1.0, bad, 3.0]], np.float32)
    samplers = [Sampler(params, [1]) for _ in range(2)]
    with pytest.raises(FaquantError, match="no usable logits"):
        sample_rows(logits, samplers)
    assert logits[0].tolist() == [1.0, 2.0, 3.0]
    assert [sampler.step for sampler in samplers] == [0, 0]


def test_a_penalty_beyond_floats_is_the_largest_float() -> None:
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=0.01), [0, 1])
    assert sampler.sample(np.array([3e38, -3e38, 1.0], np.float32)) == 0


class Some:
    """A constraint: some tokens, for ever."""

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
def test_admitted_tokens_are_drawn_as_if_there_were_no_others(filters: dict[str, Any]) -> None:
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


def test_an_end_comes_only_after_min_tokens() -> None:
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


def test_each_of_n_answers_has_draws_of_its_own() -> None:
    logits = torch.zeros(1000)

    def answer(index: int) -> list[int]:
        sampler = Sampler(SamplingParams(seed=5, n=3)).for_answer(index)
        return [sampler.sample(logits) for _ in range(6)]

    assert answer(0) == [int(uniform(5, step) * 1000) for step in range(6)]
    assert len({tuple(answer(index)) for index in range(3)}) == 3
    assert answer(2) == answer(2)


def test_the_answers_of_a_request_share_nothing_that_moves() -> None:
    params = SamplingParams(seed=5, n=3, repetition_penalty=1.5, frequency_penalty=1.0, logit_bias={3: 2.0}, logprobs=1)
    prompt = [1, 2, 2, 3]
    rows = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    samplers = [first := Sampler(params, prompt, vocab_size=30), first.for_answer(1), first.for_answer(2)]
    together = [[sampler.sample(row) for sampler in samplers] for row in rows]
    for index, tokens in enumerate(zip(*together, strict=True)):
        lone = Sampler(params, prompt, vocab_size=30).for_answer(index)
        assert tuple(lone.sample(row) for row in rows) == tokens
        assert lone.logprobs == samplers[index].logprobs
    assert samplers[0].for_answer(0).sample(rows[0]) == together[0][0], "also from one that has begun"


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
def test_a_bad_row_moves_no_sampler(params: SamplingParams) -> None:
    samplers = [Sampler(params), Sampler(params)]
    with pytest.raises(FaquantError, match="no usable logits"):
        sample_rows(torch.tensor([[1.0, 2.0], [NAN, 1.0]]), samplers)
    assert [sampler.step for sampler in samplers] == [0, 0]
    with pytest.raises(UsageError, match="one row of floats"):
        sample_rows(torch.zeros(3, 5), samplers)
