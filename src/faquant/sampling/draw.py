"""Draws tokens from rows of scores: temperature, top-k, top-p, min-p and the draw itself (csrc/ops/draw.cpp).

The filters are applied in the order of transformers, each to the distribution that the previous one leaves.
Probabilities are computed in float64 and summed in an order that depends only on the row, so a token depends neither on
the batch, nor on the number of threads, nor on the instruction set.

Ties: greedy sampling takes the lowest id. Top-k keeps all tokens that are as likely as the k-th, as transformers does.
If top-p has to choose between equally likely tokens, it keeps the lower ids (transformers keeps the higher ones).
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FaquantError
from ..kernels import _C
from ..kernels.threads import ALL_THREADS
from ..structured.constraint import Bits
from .params import SamplingParams

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
NEEDS_MASK = -2
"""What `draw` returns for a row whose token depends on the mask."""
TokenLogprobs = tuple[float, list[tuple[int, float]]]
"""A token's log-probability, and (id, log-probability) pairs of the likeliest tokens, descending, then by id."""


def check_maximum(top: float) -> None:
    """Raises: FaquantError: `top`, the maximum of some logits, is not finite."""
    if not math.isfinite(top):
        raise FaquantError(
            f"The model returned unusable logits (their maximum is {top}). The checkpoint is probably damaged, or a "
            "quantized layer overflowed; `faquant evaluate` shows which."
        )


def draw(
    scores: Floats,
    params: Sequence[SamplingParams],
    uniforms: Sequence[float],
    isa: str | None = None,
    before_mask: Collection[int] = (),
) -> list[int]:
    """Choose a token for each row.

    Args:
        scores: [rows, vocab], contiguous, float32 or float64; -inf rules a token out.
        params: one for each row, of which temperature, top_k, top_p and min_p are used.
        uniforms: a number in [0, 1) for each row. It selects a token from the cumulative probabilities of the kept
            tokens, in ascending order of id.
        before_mask: rows of which only a token is chosen that `draw_masked` chooses from every mask with it. It is the
            only one that passes the filters. NEEDS_MASK if there is none.

    Raises:
        FaquantError: the maximum of a row is not finite.
    """
    asked = [(row, 0, _asked(*one), row in before_mask) for row, one in enumerate(zip(params, uniforms, strict=True))]
    tokens = _C.draw(*_row_addresses(scores, len(asked)), len(asked), asked, ALL_THREADS, isa)
    if -1 in tokens:
        check_maximum(float(scores[tokens.index(-1)].max(initial=-math.inf)))
    return tokens


def draw_masked(
    scores: Floats,
    rows: Sequence[int],
    masks: Sequence[Bits],
    params: Sequence[SamplingParams],
    uniforms: Sequence[float],
) -> list[int]:
    """Choose a token from those in a mask, for some rows of float32 scores; -1 if the mask leaves none.

    masks: one for each of `rows`.
    """
    if scores.dtype.char != "f" or any(
        8 * mask.size < scores.shape[1] or not mask.flags.c_contiguous for mask in masks
    ):
        raise ValueError("Scores must be float32; masks must be contiguous, with a bit for each token.")
    asked = [
        (row, mask.ctypes.data, _asked(*one), False)
        for row, mask, one in zip(rows, masks, zip(params, uniforms, strict=True), strict=True)
    ]
    return _C.draw(*_row_addresses(scores, len(scores)), len(scores), asked, ALL_THREADS, None)


def distribution(scores: Floats, params: SamplingParams, isa: str | None = None) -> tuple[Integers, Floats]:
    """The distribution after temperature, top-k, top-p and min-p of `scores` [vocab]: ascending ids, probabilities."""
    tokens = _C.distribution(*_row_addresses(scores[None], 1), _asked(params, 0.0), isa)
    weights = np.array([weight for _, weight in tokens])
    return np.array([token for token, _ in tokens]), weights / weights.sum()


def log_probabilities(
    scores: Floats, tokens: Sequence[int], counts: Sequence[int | None], isa: str | None = None
) -> list[TokenLogprobs | None]:
    """For each row of scores [rows, vocab], the log-probabilities of its token and of the `count` likeliest tokens.

    None for rows whose count is None. Tokens with score -inf are not among the likeliest.
    """
    wanted = [-1 if count is None else count for count in counts]
    found = _C.likeliest(*_row_addresses(scores, len(wanted)), wanted, ALL_THREADS, isa)
    return [
        None
        if count is None
        else (float(row[token]) - log_sum, [(other, score - log_sum) for other, score in likeliest])
        for row, token, count, (log_sum, likeliest) in zip(scores, tokens, counts, found, strict=True)
    ]


def _asked(params: SamplingParams, uniform: float) -> tuple[float, int, float, float, float]:
    return (params.temperature, params.top_k, params.top_p, params.min_p, uniform)


def _row_addresses(scores: Floats, rows: int) -> tuple[int, bool, int]:
    """The address of scores [rows, vocab], whether they are float64, and vocab."""
    kind = scores.dtype.char
    if kind not in "fd" or len(scores) != rows or not scores.flags.c_contiguous:
        raise ValueError(
            f"scores must be contiguous float32 or float64 [{rows}, vocab], not {scores.dtype} {scores.shape}."
        )
    return scores.ctypes.data, kind == "d", scores.shape[1]
