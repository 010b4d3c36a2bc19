"""Log-probabilities of the tokens of prompts, from the hidden states that a step computes for them anyway."""

from collections.abc import Callable, Iterator

import numpy as np

from ..kernels.arrays import Array, to_numpy
from ..sampling.draw import TokenLogprobs, log_probabilities
from .request import Request

_ROWS = 128
"""Rows of logits at a time; those of a whole prompt would be gigabytes."""


def score_prompt(request: Request, hidden: Array, logits: Callable[[Array], Array]) -> None:
    """Extend request.prompt_logprobs by the tokens that follow those of `hidden`.

    Args:
        hidden: [tokens, hidden], of the request's tokens from `computed` on.
        logits: returns the logits [tokens, vocab] of hidden states.
    """
    # After a preemption, some are known already.
    begin = len(request.prompt_logprobs)
    end = min(request.computed + len(hidden), request.prompt_length - 1)
    for first in range(begin, end, _ROWS):
        last = min(first + _ROWS, end)
        rows = logits(hidden[first - request.computed : last - request.computed])
        request.prompt_logprobs += _scores(rows, request.ids[first + 1 : last + 1], request.params.prompt_logprobs)


def _scores(logits: Array, tokens: list[int], count: int | None) -> Iterator[TokenLogprobs]:
    rows = np.ascontiguousarray(to_numpy(logits), np.float32)
    found = log_probabilities(rows, tokens, [count] * len(tokens))
    return (one for one in found if one is not None)
