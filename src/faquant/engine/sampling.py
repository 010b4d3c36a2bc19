"""From logits to a token: what a request may ask for, and the draw itself.

The order is that of transformers and vLLM: repetition penalty, temperature, top-k, top-p, min-p; each sees the
distribution that the one before it left. It is worked out in float64, row by row, in numpy: on the calling thread
alone, so that a token depends on neither the batch nor the number of threads, and waits for none.

Ties: greedy takes the lowest id. Top-k keeps every token that is as likely as the k-th, as transformers does. Where
top-p must choose between equally likely tokens, it keeps the lower ids (transformers keeps the higher ones).
"""

import hashlib
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import FaquantError, UsageError

MAX_STOP_STRINGS = 64
MAX_STOP_LENGTH = 1024
MAX_LOGPROBS = 20
_UNIFORM_BITS = 48  # leaves room below 1.0 for the rounding of uniform · total

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one request are chosen and when it ends. Checked when it is made.

    temperature: 0 is greedy. top_k: 0 or -1 keeps all. top_p, min_p: 1 and 0 keep all. repetition_penalty: above 1
    discourages the tokens of prompt and answer (Keskar et al. 2019, arXiv:1909.05858, section 4.1). seed: None draws
    one from the operating system. stop: a string or several; the text ends before the first. ignore_eos: go on to
    max_tokens. logprobs: report the log-probability of each token and of so many of the likeliest.

    Raises:
        UsageError: a value is outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1

    def __post_init__(self) -> None:
        self._check_number("temperature", 0.0, sys.float_info.max, "a finite number of at least 0 (0 is greedy)")
        self._check_number("top_p", 0.0, 1.0, "a number above 0 and at most 1", open_low=True)
        self._check_number("min_p", 0.0, 1.0, "a number from 0 to 1")
        self._check_number("repetition_penalty", 0.01, 100.0, "a number from 0.01 to 100")
        self._check_integer("top_k", -1, 2**31 - 1, "a whole number of at least 1, or 0 or -1 for all tokens")
        self._check_integer("max_tokens", 1, 2**31 - 1, "a whole number of at least 1")
        self._check_integer("n", 1, 128, "a whole number from 1 to 128")
        if self.seed is not None:
            self._check_integer("seed", -(2**63), 2**64 - 1, "a whole number from -2^63 to 2^64 - 1, or None")
        if self.logprobs is not None:
            self._check_integer("logprobs", 0, MAX_LOGPROBS, f"a whole number from 0 to {MAX_LOGPROBS}, or None")
        if not isinstance(self.ignore_eos, bool):
            raise self._wrong("ignore_eos", "true or false")
        object.__setattr__(self, "stop", self._checked_stop(self.stop))

    def _check_number(self, name: str, low: float, high: float, wanted: str, open_low: bool = False) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high or (open_low and value == low):
            raise self._wrong(name, wanted)
        object.__setattr__(self, name, float(value))

    def _check_integer(self, name: str, low: int, high: int, wanted: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(name, wanted)

    def _checked_stop(self, value: object) -> tuple[str, ...]:
        texts = (value,) if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
            raise self._wrong("stop", "a string or a list of strings, none of them empty")
        if len(texts) > MAX_STOP_STRINGS or any(len(text) > MAX_STOP_LENGTH for text in texts):
            raise UsageError(f"stop takes at most {MAX_STOP_STRINGS} strings of {MAX_STOP_LENGTH} characters.")
        return tuple(texts)

    def _wrong(self, name: str, wanted: str) -> UsageError:
        value = getattr(self, name)
        # Python refuses to print an integer of many thousand digits.
        shown = "a larger number" if isinstance(value, int) and value.bit_length() > 128 else repr(value)[:200]
        return UsageError(f"{name} must be {wanted}, not {shown}.")


class Sampler:
    """The draws of one request. Token number n depends on params, seed, n, the logits and the request's own tokens.

    `seed` is the seed in use, also where params had none; `prompt_ids` count for the repetition penalty.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Iterable[int] = ()) -> None:
        self.params = params
        self.seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else params.seed
        self.step = 0
        self._seen = set(prompt_ids) if params.repetition_penalty != 1.0 else set()

    def sample(self, logits: torch.Tensor) -> int:
        """Choose the next token from logits [vocab] and remember it.

        Raises:
            FaquantError: the logits are no distribution (see `sample`).
        """
        token = sample(logits, self.params, self._seen, uniform(self.seed, self.step))
        self.step += 1
        if self.params.repetition_penalty != 1.0:
            self._seen.add(token)
        return token


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) that is a function of seed and step alone: no generator whose state others could advance."""
    # Seeds of 2^63 and above are the two's complement of negative ones; both mean the same 64 bits.
    message = (seed % 2**64).to_bytes(8, "little") + step.to_bytes(8, "little")
    digest = hashlib.blake2b(message, digest_size=8, person=b"faquant-draw").digest()
    return float((int.from_bytes(digest, "little") >> (64 - _UNIFORM_BITS)) / 2**_UNIFORM_BITS)


def sample(logits: torch.Tensor, params: SamplingParams, history_ids: Iterable[int], uniform: float) -> int:
    """Choose a token.

    Args:
        logits: [vocab], floating point; -inf rules a token out. Not modified.
        params: temperature, top_k, top_p, min_p and repetition_penalty count here.
        history_ids: tokens of prompt and answer so far, each counted once; used by the repetition penalty only.
        uniform: a number in [0, 1); the token is where it falls when the kept tokens' probabilities are laid side by
            side in ascending order of id.

    Raises:
        UsageError: logits is not one row, or uniform is outside [0, 1).
        FaquantError: the logits hold NaN or +inf, or nothing but -inf.
    """
    scores = _row(logits)
    if not 0.0 <= uniform < 1.0:
        raise UsageError(f"uniform must be at least 0 and below 1, not {uniform!r}.")
    top = float(scores.max()) if scores.size else -math.inf
    if not math.isfinite(top):
        raise FaquantError(
            f"The model gave no usable logits (their maximum is {top}). The checkpoint is probably damaged, or a "
            "quantized layer overflowed; `faquant evaluate` tells which."
        )
    scores = penalized(scores, params.repetition_penalty, history_ids)
    if params.temperature == 0.0:
        return int(scores.argmax())  # the first of equal ones
    ids, probabilities = distribution(scores, params)
    cumulated = np.cumsum(probabilities)
    point = min(uniform, 1.0 - 2.0**-_UNIFORM_BITS) * float(cumulated[-1])
    # "right" finds the first sum above the point, so a token of probability 0 is never drawn.
    return int(ids[np.searchsorted(cumulated, point, side="right")])


def _row(logits: torch.Tensor) -> Floats:
    if logits.dim() != 1 or not logits.is_floating_point():
        raise UsageError(f"logits must be one row of floats [vocab], not {logits.dtype} {list(logits.shape)}.")
    row: Floats = logits.detach().to("cpu", torch.float32).numpy()
    return row


def penalized(scores: Floats, penalty: float, history_ids: Iterable[int]) -> Floats:
    """Logits [vocab] with those of past tokens divided by the penalty where positive, multiplied where negative."""
    if penalty == 1.0:
        return scores
    past = np.array([token for token in set(history_ids) if 0 <= token < scores.size], dtype=np.int64)
    scores = scores.astype(np.float64)  # where no penalty can overflow
    old = scores[past]
    scores[past] = np.where(old < 0, old * penalty, old / penalty)
    return scores


def distribution(scores: Floats, params: SamplingParams) -> tuple[Integers, Floats]:
    """What temperature, top-k, top-p and min-p leave: token ids, ascending, and their probabilities (float64)."""
    ids = np.arange(scores.size)
    if 0 < params.top_k < scores.size:
        ids = np.flatnonzero(scores >= _nth_largest(scores, params.top_k))
    kept_scores = scores[ids].astype(np.float64)
    with np.errstate(over="ignore"):  # below the maximum only towards -inf, however small the temperature
        weights = np.exp((kept_scores - kept_scores.max()) / params.temperature)
    probabilities = weights / weights.sum()
    if params.top_p < 1.0:
        kept = _nucleus(probabilities, params.top_p)
        ids, probabilities = ids[kept], probabilities[kept]
    if params.min_p > 0.0:
        kept = np.flatnonzero(probabilities >= params.min_p * probabilities.max())
        ids, probabilities = ids[kept], probabilities[kept]
    return ids, probabilities / probabilities.sum()


def _nucleus(probabilities: Floats, top_p: float) -> Integers:
    """Indices, ascending, of the fewest likeliest tokens whose probabilities reach top_p together.

    Holtzman et al. 2020, arXiv:1904.09751, section 3.1: a token stays while those before it sum to less than top_p.
    """
    count = 256  # sorting a whole vocabulary would cost more than the rest of sampling; few tokens hold most of it
    while True:
        head = np.arange(probabilities.size)
        if count < probabilities.size:
            head = np.flatnonzero(probabilities >= _nth_largest(probabilities, count))
        order = head[np.argsort(-probabilities[head], kind="stable")]
        cumulated = np.cumsum(probabilities[order])
        if count >= probabilities.size or cumulated[-1] >= top_p:
            before = np.concatenate(([0.0], cumulated[:-1]))
            return np.sort(order[before < top_p])
        count *= 16


def _nth_largest(values: Floats, count: int) -> float:
    place = values.size - count
    return float(np.partition(values, place)[place])


def log_probabilities(logits: torch.Tensor, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """Log-probability of `token`, and the `count` likeliest tokens with theirs (likeliest first, then lowest id).

    They are those of the model itself, before penalty, temperature and filters, as vLLM reports them. logits: [vocab].
    """
    scores = _row(logits).astype(np.float64)
    scores -= scores.max()
    logs = scores - math.log(np.exp(scores).sum())
    top: list[tuple[int, float]] = []
    if count > 0:
        ids = np.flatnonzero(logs >= _nth_largest(logs, min(count, logs.size)))
        top = sorted(zip(ids.tolist(), logs[ids].tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))[:count]
    return float(logs[token]), top
