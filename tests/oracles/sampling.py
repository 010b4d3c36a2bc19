"""Sampling by definition, over the whole vocabulary in float64, regardless of speed."""

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from faquant.sampling.sampler import SamplingParams, uniform

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

PARAMS = st.builds(
    SamplingParams,
    temperature=st.floats(0.05, 5.0),
    top_k=st.sampled_from([-1, 0, 1, 2, 5, 40, 10_000]),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1.0)),
    min_p=st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
    repetition_penalty=st.one_of(st.just(1.0), st.floats(0.5, 2.0)),
)
"""Sampling parameters."""


def plain_scores(
    logits: npt.NDArray[np.float32], params: SamplingParams, prompt: list[int], answer: list[int], ends: set[int]
) -> Floats:
    """Logits [vocab] after logit_bias, min_tokens and the penalties."""
    scores = [float(value) for value in logits]
    for token, bias in tuple(params.logit_bias):
        scores[token] += bias
    if len(answer) < params.min_tokens:
        for token in ends:
            scores[token] = -np.inf
    for token in {*prompt, *answer}:
        penalty = params.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token in set(answer):  # platform.openai.com/docs/api-reference: over the tokens sampled so far
        scores[token] -= answer.count(token) * params.frequency_penalty + params.presence_penalty
    return np.array(scores)


def plain_distribution(scores: npt.NDArray[np.floating], params: SamplingParams) -> tuple[Integers, Floats]:
    """Token ids that pass temperature, top-k, top-p and min-p, ascending, and their probabilities."""
    scores = scores.astype(np.float64)
    ids = np.arange(scores.size)
    if 0 < params.top_k < scores.size:
        ids = np.flatnonzero(scores >= np.sort(scores)[-params.top_k])
    with np.errstate(over="ignore"):
        weights = np.exp((scores[ids] - scores.max()) / params.temperature)
    probabilities = weights / weights.sum()
    if params.top_p < 1.0:
        order = np.argsort(-probabilities, kind="stable")
        before = np.concatenate(([0.0], np.cumsum(probabilities[order])[:-1]))
        kept = np.sort(order[before < params.top_p])
        ids, probabilities = ids[kept], probabilities[kept]
    kept = np.flatnonzero(probabilities >= params.min_p * probabilities.max())
    ids, probabilities = ids[kept], probabilities[kept]
    return ids, probabilities / probabilities.sum()


def plain_sample(
    logits: npt.NDArray[np.float32], params: SamplingParams, prompt: list[int], answer: list[int], ends: set[int]
) -> int:
    """The next token after prompt and answer; params has a seed."""
    assert params.seed is not None
    scores = plain_scores(logits, params, prompt, answer, ends).astype(logits.dtype)
    if params.temperature == 0.0:
        return int(np.flatnonzero(scores == scores.max())[0])
    ids, probabilities = plain_distribution(scores, params)
    cumulated = np.cumsum(probabilities)
    point = uniform(params.seed, len(answer)) * cumulated[-1]
    return int(ids[np.searchsorted(cumulated, point, side="right")])
