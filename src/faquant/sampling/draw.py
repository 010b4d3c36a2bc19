"""From rows of scores to tokens: temperature, top-k, top-p and min-p, and the draw itself, by csrc/ops/draw.cpp.

The filters come in the order of transformers: each sees the distribution that the one before it left. Probabilities are
worked out in float64, with sums in an order that the row alone decides, so that a token depends on neither the batch,
the number of threads nor the instruction set.

Ties: greedy takes the lowest id. Top-k keeps every token that is as likely as the k-th, as transformers does. Where
top-p must choose between equally likely tokens, it keeps the lower ids (transformers keeps the higher ones).
"""

import math
from collections.abc import Sequence
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
TokenLogprobs = tuple[float, list[tuple[int, float]]]
"""A token's log-probability, and (id, log-probability) of the likeliest, likeliest first, then lowest id."""


def check_maximum(top: float) -> None:
    """Raises: FaquantError: `top`, the maximum of some logits, is not finite, so that they are no distribution."""
    if not math.isfinite(top):
        raise FaquantError(
            f"The model gave no usable logits (their maximum is {top}). The checkpoint is probably damaged, or a "
            "quantized layer overflowed; `faquant evaluate` tells which."
        )


def draw(
    scores: Floats, params: Sequence[SamplingParams | None], uniforms: Sequence[float], isa: str | None = None
) -> list[int]:
    """Choose a token for each row.

    Args:
        scores: [rows, vocab], contiguous, float32 or float64; -inf rules a token out.
        params: of each row: temperature, top_k, top_p and min_p count here; None: the likeliest.
        uniforms: a number in [0, 1) for each row; the token is where it falls when the kept tokens' probabilities are
            laid side by side in ascending order of id.

    Raises:
        FaquantError: some row's maximum is not finite.
    """
    asked = [(row, 0, _asked(*one)) for row, one in enumerate(zip(params, uniforms, strict=True))]
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
    """Choose a token for some of the rows of scores, float32, from those of a mask; -1 where that leaves none.

    masks: a bit for each token: token n is bit n % 8, from the lowest, of byte n // 8.
    """
    if scores.dtype.char != "f" or any(
        8 * mask.size < scores.shape[1] or not mask.flags.c_contiguous for mask in masks
    ):
        raise ValueError("Masks are of float32 rows, contiguous, and have a bit for each token.")
    asked = [
        (row, mask.ctypes.data, _asked(*one))
        for row, mask, one in zip(rows, masks, zip(params, uniforms, strict=True), strict=True)
    ]
    return _C.draw(*_row_addresses(scores, len(scores)), len(scores), asked, ALL_THREADS, None)


def distribution(scores: Floats, params: SamplingParams, isa: str | None = None) -> tuple[Integers, Floats]:
    """What temperature, top-k, top-p and min-p leave of `scores` [vocab]: ids, ascending, and their probabilities."""
    tokens = _C.distribution(*_row_addresses(scores[None], 1), _asked(params, 0.0), isa)
    weights = np.array([weight for _, weight in tokens])
    return np.array([token for token, _ in tokens]), weights / weights.sum()


def log_probabilities(
    scores: Floats, tokens: Sequence[int], counts: Sequence[int | None], isa: str | None = None
) -> list[TokenLogprobs | None]:
    """For each row of scores [rows, vocab], log-probabilities of its token and of the `count` likeliest.

    None where its count is None. Tokens of score -inf are not among the likeliest.
    """
    wanted = [-1 if count is None else count for count in counts]
    found = _C.likeliest(*_row_addresses(scores, len(wanted)), wanted, ALL_THREADS, isa)
    return [
        None
        if count is None
        else (float(row[token]) - log_sum, [(other, score - log_sum) for other, score in likeliest])
        for row, token, count, (log_sum, likeliest) in zip(scores, tokens, counts, found, strict=True)
    ]


def _asked(params: SamplingParams | None, uniform: float) -> tuple[float, int, float, float, float]:
    if params is None:
        return (0.0, 0, 1.0, 0.0, uniform)
    return (params.temperature, params.top_k, params.top_p, params.min_p, uniform)


def _row_addresses(scores: Floats, rows: int) -> tuple[int, bool, int]:
    """Where scores [rows, vocab] stand, whether they are float64, and vocab."""
    kind = scores.dtype.char
    if kind not in "fd" or len(scores) != rows or not scores.flags.c_contiguous:
        raise ValueError(
            f"scores must be contiguous float32 or float64 [{rows}, vocab], not {scores.dtype} {scores.shape}."
        )
    return scores.ctypes.data, kind == "d", scores.shape[1]
