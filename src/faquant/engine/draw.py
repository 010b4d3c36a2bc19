"""From one row of scores to a token: temperature, top-k, top-p and min-p, and the draw itself.

The filters come in the order of transformers: each sees the distribution that the one before it left. Results are
worked out in float64, in numpy: on the calling thread alone, so that a token depends on neither the batch nor the
number of threads, and waits for none. Over a whole vocabulary a first pass in float32 finds the few tokens that can
matter; where its rounding could decide anything, float64 decides.

Ties: greedy takes the lowest id. Top-k keeps every token that is as likely as the k-th, as transformers does. Where
top-p must choose between equally likely tokens, it keeps the lower ids (transformers keeps the higher ones).
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FaquantError
from .sampling_params import SamplingParams

UNIFORM_BITS = 48  # leaves room below 1.0 for the rounding of uniform · total
_FLOAT32_DOUBT = 2.0**-15
_FLOAT64_DOUBT = 2.0**-40
_COLDEST = 1e-300  # whose inverse is finite; below it all is as greedy as there
_FEW = 2048  # so many tokens are sorted at once
_BLOCK = 128

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]


def check_maximum(top: float) -> None:
    """Raises: FaquantError: `top`, the maximum of some logits, is not finite, so that they are no distribution."""
    if not math.isfinite(top):
        raise FaquantError(
            f"The model gave no usable logits (their maximum is {top}). The checkpoint is probably damaged, or a "
            "quantized layer overflowed; `faquant evaluate` tells which."
        )


def draw(scores: Floats, top: float, params: SamplingParams, uniform: float) -> int:
    """Choose a token.

    Args:
        scores: [vocab], float32 or float64; -inf rules a token out.
        top: their maximum, finite.
        params: temperature, top_k, top_p and min_p count here.
        uniform: a number in [0, 1); the token is where it falls when the kept tokens' probabilities are laid side by
            side in ascending order of id.
    """
    if params.temperature == 0.0:
        return int(scores.argmax())  # the first of equal ones
    ids, weights = _kept(scores, top, params)
    # Sums of blocks first: one running sum over a vocabulary takes longer than all the rest.
    sums = np.add.reduceat(weights, np.arange(0, weights.size, _BLOCK)).cumsum()
    point = min(uniform, 1.0 - 2.0**-UNIFORM_BITS) * float(sums[-1])
    # "right" finds the first sum above the point, so a token of probability 0 is never drawn.
    block = int(sums.searchsorted(point, side="right"))
    first = block * _BLOCK
    inside = weights[first : first + _BLOCK].cumsum()
    rest = point - float(sums[block - 1]) if block else point
    # Rounding may put the end of the last token before the end of the block, and the point between them.
    rest = min(rest, math.nextafter(inside[-1], 0.0))
    place = first + int(inside.searchsorted(rest, side="right"))
    return place if ids is None else int(ids[place])


def distribution(scores: Floats, params: SamplingParams) -> tuple[Integers, Floats]:
    """What temperature, top-k, top-p and min-p leave of `scores` [vocab]: ids, ascending, and their probabilities."""
    ids, weights = _kept(scores, float(scores.max()), params)
    return np.arange(scores.size) if ids is None else ids, weights / weights.sum()


def _kept(scores: Floats, top: float, params: SamplingParams) -> tuple[Integers | None, Floats]:
    """The ids that are left, ascending (None: all), and their probabilities as shares of the likeliest's (float64)."""
    ids: Integers | None = None
    for narrowed in (_top_k, _top_p, _min_p):
        places = narrowed(scores, top, params)
        if places is not None:
            scores, ids = scores[places], places if ids is None else ids[places]
    return ids, _weights(scores, top, params)


def _weights(scores: Floats, top: float, params: SamplingParams) -> Floats:
    weights = scores.astype(np.float64)
    weights -= top
    with np.errstate(over="ignore"):  # below the maximum only towards -inf, however small the temperature
        weights *= 1.0 / max(params.temperature, _COLDEST)
    return np.exp(weights, out=weights)


def _top_k(scores: Floats, top: float, params: SamplingParams) -> Integers | None:
    if not 0 < params.top_k < scores.size:
        return None
    places = at_least(scores, params.top_k)
    candidates = scores[places]
    return places[candidates >= _nth_largest(candidates, min(params.top_k, candidates.size))]


def _min_p(scores: Floats, top: float, params: SamplingParams) -> Integers | None:
    if params.min_p == 0.0:
        return None
    # As a bound of the scores first, a little lower than rounding could make it.
    below = params.temperature * (math.log(params.min_p) * (1 + 1e-9) - 1e-9)
    with np.errstate(over="ignore"):
        bound = np.nextafter(scores.dtype.type(top + below), scores.dtype.type(-np.inf))
    places = np.flatnonzero(scores >= bound)
    return places[_weights(scores[places], top, params) >= params.min_p]


def _top_p(scores: Floats, top: float, params: SamplingParams) -> Integers | None:
    """Indices, ascending, of the fewest likeliest tokens whose probabilities reach top_p together.

    Holtzman et al. 2020, arXiv:1904.09751, section 3.1: a token stays while those before it sum to less than top_p.
    """
    if params.top_p == 1.0:
        return None
    if scores.size > _FEW:
        places = _top_p_of_many(scores, top, params)
        if places is not None:
            return places
    weights = _weights(scores, top, params)
    weights /= weights.sum()
    return _fewest(weights, params.top_p, params.top_p)


def _top_p_of_many(scores: Floats, top: float, params: SamplingParams) -> Integers | None:
    """The same with float64 for few tokens and the sum of the others in float32, or None where that is in doubt.

    Tokens of less than (1 - top_p) / vocab have less than 1 - top_p together, so that the others are always enough;
    mostly those of eight times as much are. A term's relative error in float32 is below 2^-15: exp(-d) has
    3 · 2^-24 · d from the roundings of d, and those of d > 104 are zero; exp itself adds less than 2^-21, and the
    pairwise sum less than 2^-18.
    """
    with np.errstate(all="ignore"):  # at extreme temperatures the sum is NaN
        shares = (scores - scores.dtype.type(top)).astype(np.float32, copy=False)
        shares *= np.float32(1.0 / max(params.temperature, _COLDEST))
        about = float(np.exp(shares, out=shares).sum())
    if math.isnan(about):
        return None
    least = (1.0 - params.top_p) / scores.size * about * (1.0 - 4 * _FLOAT32_DOUBT)
    for bound in (8 * least, least):
        places = np.flatnonzero(shares >= np.float32(bound))
        weights = _weights(scores[places], top, params)
        others = shares.copy()
        others[places] = 0.0
        rest = float(others.sum())
        total = float(weights.sum()) + rest
        doubt = _FLOAT32_DOUBT * rest + _FLOAT64_DOUBT * total
        low, high = params.top_p * (total - doubt), params.top_p * (total + doubt)
        kept = _fewest(weights, low, high) if total - rest > high else None
        if kept is not None:
            return places[kept]
    return None


def _fewest(weights: Floats, low: float, high: float) -> Integers | None:
    """Indices, ascending, of the fewest largest weights that reach some sum; the lower ones of equal weights.

    The sum is known to lie from `low` to `high`. None where that is not enough to tell.
    """
    descending = np.sort(weights)[::-1]
    before = descending[:-1].cumsum()  # a weight stays while those before it sum to less
    count = 1 + int(before.searchsorted(low))
    if count <= before.size and before[count - 1] < high:
        return None
    last = descending[count - 1]
    places = np.flatnonzero(weights >= last)
    surplus = places.size - count
    return places if not surplus else np.delete(places, np.flatnonzero(weights[places] == last)[-surplus:])


def at_least(scores: Floats, count: int) -> Integers:
    """Indices, ascending, of the `count` largest of `scores` [vocab] and some more; never of -inf.

    The count-th largest of the maxima of disjoint groups is a lower bound of the count-th largest of all.
    """
    groups = scores.size // 16
    values = scores[: 16 * groups].reshape(16, groups).max(axis=0) if groups > 2 * count else scores
    bound = _nth_largest(values, min(count, values.size))
    return np.flatnonzero(scores >= max(bound, float(np.finfo(scores.dtype).min)))


def _nth_largest(values: Floats, count: int) -> float:
    place = values.size - count
    return float(np.partition(values, place)[place])
