"""The draw against the logits processors of transformers and the plain definition, on every instruction set."""

import math
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

from faquant.errors import FaquantError
from faquant.kernels import isa as cpu
from faquant.kernels import threads
from faquant.sampling.draw import NEEDS_MASK, TokenLogprobs, distribution, draw, draw_masked, log_probabilities
from faquant.sampling.sampler import Sampler, SamplingParams, uniform
from oracles.sampling import PARAMS, plain_distribution
from oracles.threads import set_threads


def transformers_probabilities(logits: torch.Tensor, params: SamplingParams, history: list[int]) -> torch.Tensor:
    """The probabilities [vocab] according to transformers, computed in float64 to avoid rounding."""
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
    """Discard examples in which rounding decides how many tokens reach top_p."""
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
        logits[torch.randperm(size, generator=generator)[: size // 2]] = -math.inf
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


def test_ties_at_the_edge_of_top_k_are_all_kept() -> None:
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


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000, 151_936])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_instruction_set_threads_and_batch_change_nothing(size: int, dtype: Any) -> None:
    generator = np.random.default_rng(size)
    rows = (generator.standard_normal((5, size)) * [[0.1], [2.0], [2.0], [9.0], [300.0]]).astype(dtype)
    rows[2, generator.random(size) < 0.9] = -math.inf
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
    before = threads.count()
    try:
        for isa in cpu.available_isas():
            for count in (1, 2, 4):
                set_threads(count)
                tokens = draw(rows, params, uniforms, isa)
                results.append((tokens, log_probabilities(rows, tokens, counts, isa)))
            alone = [draw(rows[i : i + 1], params[i : i + 1], uniforms[i : i + 1], isa)[0] for i in range(5)]
            logs = [log_probabilities(rows[i : i + 1], [alone[i]], counts[i : i + 1], isa)[0] for i in range(5)]
            results.append((alone, logs))
    finally:
        set_threads(before)
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
    beyond = np.array([0.0, -740.0, -745.0, -746.0, -1e300, -math.inf])
    np.testing.assert_allclose(distribution(beyond, SamplingParams(), isa)[1], np.exp(beyond), rtol=1e-9, atol=5e-324)


@pytest.mark.parametrize("scores", [np.zeros((2, 5), np.float16), np.zeros((2, 10), np.float32)[:, ::2], np.zeros(5)])
def test_rows_that_the_kernels_cannot_read_are_refused(scores: Any) -> None:
    with pytest.raises(ValueError, match="scores must be contiguous"):
        draw(scores, [SamplingParams()] * 2, [0.5] * 2)


@pytest.mark.parametrize("point", [0.0, 0.25, 0.5, 1.0 - 2.0**-53])
def test_a_token_ruled_out_is_never_drawn(point: float) -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, -1000.0, 0.0, -math.inf])
    assert token_at(logits, SamplingParams(), point) in (1, 4)
    assert token_at(logits, SamplingParams(temperature=1e-300), point) in (1, 4)
    assert token_at(logits, SamplingParams(temperature=5e-324), point) in (1, 4)


@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 2, 63, 64, 65, 300, 5000]),
    scale=st.sampled_from([1.0, 3.0, 20.0]),
    params=PARAMS,
    share=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
)
@settings(max_examples=300, deadline=None)
def test_a_token_drawn_before_the_mask_is_the_draw_of_every_mask_with_it(
    seed: int, size: int, scale: float, params: SamplingParams, share: float
) -> None:
    generator = np.random.default_rng(seed)
    row = (generator.standard_normal((1, size)) * scale).astype(np.float32)
    point = float(generator.random())
    (token,) = draw(row, [params], [point], before_mask={0})
    assume(token != NEEDS_MASK)
    flags = generator.random(size) < share
    flags[token] = True
    mask = np.packbits(flags, bitorder="little")
    assert draw_masked(row, [0], [mask], [params], [point]) == draw(row, [params], [point]) == [token]


def test_likely_tokens_need_no_mask() -> None:
    row = np.full((1, 5000), -3.0, np.float32)
    row[0, 70] = 12.0
    for params in (SamplingParams(top_p=0.95), SamplingParams(min_p=0.1), SamplingParams(top_k=1)):
        assert draw(row, [params], [0.9], before_mask={0}) == [70]
    # Ten tokens that are likely enough to matter, in ten blocks.
    row[0, 64:704:64] = 10.0
    assert draw(row, [SamplingParams(top_p=0.95)], [0.9], before_mask={0}) == [NEEDS_MASK]
    assert draw(row, [SamplingParams(top_p=0.4)], [0.9], before_mask={0}) == [70]
    row[0, 71] = math.nan
    with pytest.raises(FaquantError, match="unusable logits"):
        draw(row, [SamplingParams(top_k=1)], [0.9], before_mask={0})


@pytest.mark.parametrize("size", [1, 7, 8, 9, 64, 128, 1001])
def test_a_masked_draw_equals_the_draw_of_a_row_without_the_masked_tokens(size: int) -> None:
    generator = np.random.default_rng(size)
    row = generator.standard_normal((1, size)).astype(np.float32)
    for params in (SamplingParams(), SamplingParams(top_p=0.8), SamplingParams(top_k=3), SamplingParams(min_p=0.3)):
        for count in {1, 2, size // 2, size - size // 50, size}:
            flags = np.zeros(size, bool)
            flags[generator.permutation(size)[:count]] = True
            mask = np.packbits(flags, bitorder="little")
            mask[-1] |= np.uint8(0xFF << (size - 1) % 8 + 1 & 0xFF)  # bits beyond the last token
            for point in (0.0, 0.3, 0.999):
                masked = np.where(flags, row, np.float32(-math.inf))
                wanted = draw(masked, [params], [point]) if flags.any() else [-1]
                assert draw_masked(row, [0], [mask], [params], [point]) == wanted


def log_probabilities_of(logits: torch.Tensor, token: int, count: int) -> TokenLogprobs:
    """The log-probabilities of one row, which follows a row without any."""
    nothing, found = log_probabilities(torch.stack((-logits, logits)).numpy(), [0, token], [None, count])
    assert nothing is None
    assert found is not None
    return found


def test_log_probabilities_are_those_of_the_model() -> None:
    logits = torch.tensor([1.0, 3.0, -math.inf, 3.0, 2.0])
    logs = torch.log_softmax(logits.double(), 0).tolist()
    assert log_probabilities_of(logits, 0, 0) == (pytest.approx(logs[0]), [])
    ruled_out, top = log_probabilities_of(logits, 2, 3)
    assert ruled_out == -math.inf
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
    scores[generator.random(size) < ruled_out] = -math.inf
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
