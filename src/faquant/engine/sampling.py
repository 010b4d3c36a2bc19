"""From the model's logits to a request's next token.

The order is vLLM's: grammar, logit_bias, min_tokens, penalties (repetition, then frequency and presence), temperature,
filters (`draw`).
"""

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import UsageError
from .draw import Floats, Integers, TokenLogprobs, check_maximum, draw, log_probabilities
from .sampling_params import SamplingParams as SamplingParams

if TYPE_CHECKING:
    from .grammar import Constraint
    from .vocabulary import Bits

_TRIES = 4
_UNIFORM_BITS = 48  # leaves room below 1.0 for the rounding of uniform · total
# What the bits of a byte leave of eight logits, by np.minimum.
_LIMITS = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), np.inf, -np.inf)
_LIMITS = _LIMITS.astype(np.float32)


class Sampler:
    """The draws of one answer. Token number n depends on params, seed, index, n, the logits and its own tokens alone.

    `seed` is the seed in use, also where params had none; `step` is the number of tokens chosen so far. `logprobs` has
    theirs, where params ask for them: those of the model itself, before penalties, temperature and filters, as vLLM
    reports them.

    Args:
        prompt_ids: they count for the repetition penalty.
        vocab_size: columns of the logits; token ids of `params` must be below it.
        end_token_ids: what ends an answer of this model; not looked at with params.ignore_eos.
        index: which of the n answers of a request this is. Each has draws of its own, number 0 those of n = 1.
        constraint: what the tokens must form, made with the same end tokens and stop_token_ids as its ends.

    Raises:
        UsageError: logit_bias or stop_token_ids has a token that is not in the vocabulary, or params want a structure
            and there is no constraint.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Iterable[int] = (),
        *,
        vocab_size: int | None = None,
        end_token_ids: Iterable[int] = (),
        index: int = 0,
        constraint: "Constraint | None" = None,
    ) -> None:
        bias: dict[int, float] = dict(params.logit_bias)
        if vocab_size is not None:
            check_token_ids(params, vocab_size)
        if params.structured_output is not None and constraint is None:
            raise UsageError("Structured output is not supported here: the sampler was given no constraint.")
        self.params = params
        self.seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else params.seed
        self.index = index
        self.constraint = constraint
        self.step = 0
        self.logprobs: list[TokenLogprobs] = []
        self._ends = frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else end_token_ids)
        # Some models' configs name end tokens that they have no logits for.
        self._end_ids = np.array([i for i in self._ends if vocab_size is None or i < vocab_size], dtype=np.int64)
        self._bias_ids = np.array(list(bias), dtype=np.int64)
        self._biases = np.array(list(bias.values()))
        self._history: _History | None = None
        if params.repetition_penalty != 1.0:
            self._history = _History(prompt_ids)
        elif params.presence_penalty or params.frequency_penalty:
            self._history = _History(())

    def is_end(self, token: int) -> bool:
        """Whether `token` ends the answer: an end token of the model or one of stop_token_ids; it is no text."""
        return token in self._ends

    @property
    def must_end(self) -> bool:
        """Whether the constraint lets nothing follow: the answer is complete, though its last token is text."""
        return self.constraint is not None and self.constraint.must_end

    def sample(self, logits: torch.Tensor | Floats) -> int:
        """Choose the next token from logits [vocab] and remember it.

        Raises:
            UsageError: logits is not one row of floats.
            FaquantError: the logits hold NaN or +inf, or nothing but -inf; the sampler is as it was.
        """
        return sample_rows(_as_one_row(logits), [self])[0]

    @property
    def _ends_are_out(self) -> bool:
        return self.step < self.params.min_tokens and not self.must_end

    @property
    def _is_unfiltered(self) -> bool:
        params = self.params
        return params.temperature == 0.0 or (params.top_k <= 0 and params.top_p == 1.0 and params.min_p == 0.0)

    @property
    def _draw(self) -> SamplingParams | None:
        """How to draw from the whole row; None: the scores are only checked."""
        return self.params if self.constraint is None or self._is_unfiltered else None

    def _uniform(self, attempt: int = 0) -> float:
        return uniform(self.seed, self.step, self.index, attempt) if self.params.temperature else 0.0

    def _choose_admitted(self, row: Floats, constraint: "Constraint", drawn: int) -> int:
        """A token of those admitted, drawn from them; `drawn` is what `_draw` has given."""
        left = self.params.max_tokens - self.step - 1
        # What is drawn from all and admitted is as good as drawn from the admitted, whose mask takes longer to find.
        # Not where filters look at what the mask leaves.
        if self._is_unfiltered:
            if constraint.admits(drawn, left):
                return drawn
            row = row.copy()
            row[drawn] = -math.inf
        bits = constraint.mask()
        ids, scores = (None, row) if bits is None else _masked(row, bits)
        first = int(self._is_unfiltered)
        for attempt in range(first, first + _TRIES):
            if scores is not row and scores.max(initial=-math.inf) == -math.inf:
                break
            place = draw(scores[None], [self.params], [self._uniform(attempt)])[0]
            token = place if ids is None else int(ids[place])
            if constraint.admits(token, left):
                return token
            if scores is row:
                scores = row.copy()
            scores[place] = -math.inf
        # What is likely leads too far for the tokens left.
        token = constraint.fallback()
        constraint.admits(token, left)
        return token

    def _edit(self, row: Floats) -> "_Edit | None":
        """Change what bias, min_tokens and penalties change of a row."""
        parts: list[Integers] = [self._bias_ids] if self._bias_ids.size else []
        if self._ends_are_out:
            parts.append(self._end_ids)
        if self._history is not None:
            parts.append(self._history.ids)
        if not parts:
            return None
        edit = _Edit(row, np.concatenate(parts))
        row[self._bias_ids] += self._biases
        if self._ends_are_out:
            row[self._end_ids] = -math.inf
        if self._history is not None:
            self._history.penalize(row, self.params)
        return edit

    def _advance(self, token: int) -> None:
        self.step += 1
        if self.constraint is not None:
            self.constraint.accept(token)
        if self._history is not None:
            self._history.add(token)


def sample_rows(logits: torch.Tensor | Floats, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of each sampler, from logits [samplers, vocab]: the same as each one's `sample` of its row.

    Raises:
        UsageError: logits has another shape, or holds no floats.
        FaquantError: some row holds NaN or +inf, or nothing but -inf. No sampler has moved, so that each row can still
            be sampled alone.
    """
    rows = _floats(logits, len(samplers))
    if not samplers:
        return []
    edits: list[_Edit | None] = []
    try:
        edits += (sampler._edit(row) for sampler, row in zip(samplers, rows, strict=True))
        tokens = draw(rows, [sampler._draw for sampler in samplers], [sampler._uniform() for sampler in samplers])
        for place, sampler in enumerate(samplers):
            if sampler.constraint is not None:
                tokens[place] = sampler._choose_admitted(rows[place], sampler.constraint, tokens[place])
    finally:
        for edit in edits:
            if edit is not None:
                edit.undo()
    counts = [sampler.params.logprobs for sampler in samplers]
    if any(count is not None for count in counts):
        for sampler, logprobs in zip(samplers, log_probabilities(rows, tokens, counts), strict=True):
            sampler.logprobs += [] if logprobs is None else [logprobs]
    for sampler, token in zip(samplers, tokens, strict=True):
        sampler._advance(token)
    return tokens


def uniform(seed: int, step: int, index: int = 0, attempt: int = 0) -> float:
    """A number in [0, 1) that is a function of its arguments alone: no generator whose state others could advance."""
    # Seeds of 2^63 and above are the two's complement of negative ones; both mean the same 64 bits.
    message = (seed % 2**64).to_bytes(8, "little") + step.to_bytes(8, "little")
    if index or attempt:
        message += index.to_bytes(8, "little")
    if attempt:
        message += attempt.to_bytes(8, "little")
    digest = hashlib.blake2b(message, digest_size=8, person=b"faquant-draw").digest()
    return float((int.from_bytes(digest, "little") >> (64 - _UNIFORM_BITS)) / 2**_UNIFORM_BITS)


class _Edit:
    """What stood in some places of a row before they were changed.

    Raises: FaquantError: NaN or +inf did.
    """

    def __init__(self, row: Floats, ids: Integers) -> None:
        self._row, self._ids, self._scores = row, ids, row[ids]
        top = self._scores.max(initial=-math.inf)
        if not top < math.inf:
            check_maximum(float(top))

    def undo(self) -> None:
        self._row[self._ids] = self._scores


class _History:
    """The distinct tokens that penalties look at, and how often the answer has each."""

    def __init__(self, prompt_ids: Iterable[int]) -> None:
        ids = list(dict.fromkeys(prompt_ids))
        self._places = {token: place for place, token in enumerate(ids)}
        self._ids = np.array(ids, dtype=np.int64)
        self._counts = np.zeros(len(ids))

    @property
    def ids(self) -> Integers:
        return self._ids[: len(self._places)]

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place >= self._ids.size:
            room = np.zeros(64 + place, dtype=np.int64)  # doubled, not to copy it all for each token
            self._ids, self._counts = np.concatenate((self._ids, room)), np.concatenate((self._counts, room))
        self._ids[place] = token
        self._counts[place] += 1

    def penalize(self, scores: Floats, params: SamplingParams) -> None:
        """Change scores [vocab] in place."""
        ids, counts = self.ids, self._counts[: len(self._places)]
        old = scores[ids].astype(np.float64)  # where nothing overflows
        old = np.where(old < 0, old * params.repetition_penalty, old / params.repetition_penalty)
        old -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
        scores[ids] = np.minimum(old, np.finfo(scores.dtype).max)


def _masked(row: Floats, bits: "Bits") -> tuple[Integers | None, Floats]:
    """The logits of the tokens in a mask: ids and theirs if they are few, else None and all, the others at -inf."""
    places = np.flatnonzero(bits)
    if 8 * places.size < bits.size:
        inside = np.unpackbits(bits[places, None], axis=1, bitorder="little")
        rows, columns = np.nonzero(inside)
        ids = 8 * places[rows] + columns
        return ids, row[ids]
    limits = np.take(_LIMITS, bits, axis=0).reshape(-1)
    return None, np.minimum(row, limits[: row.size])


def _as_one_row(logits: torch.Tensor | Floats) -> torch.Tensor | Floats:
    if logits.ndim != 1:
        raise _wrong_shape(logits)
    return logits[None]


def _floats(logits: torch.Tensor | Floats, rows: int) -> Floats:
    floats = logits.is_floating_point() if isinstance(logits, torch.Tensor) else logits.dtype.kind == "f"
    if logits.ndim != 2 or logits.shape[0] != rows or not floats:
        raise _wrong_shape(logits)
    if isinstance(logits, torch.Tensor):
        logits = logits.detach().to("cpu", torch.float32).numpy()
    array: Floats = np.ascontiguousarray(logits, dtype=np.float32)
    return array if array.flags.writeable else array.copy()


def _wrong_shape(logits: torch.Tensor | Floats) -> UsageError:
    shape = list(logits.shape)
    return UsageError(f"logits must be one row of floats [vocab] for each sampler, not {logits.dtype} {shape}.")


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Raises: UsageError: logit_bias or stop_token_ids has a token that is not in the vocabulary."""
    for name, ids in (("logit_bias", dict(params.logit_bias)), ("stop_token_ids", params.stop_token_ids)):
        for token in ids:
            if token >= vocab_size:
                raise UsageError(f"{name} has the token {token}, but the vocabulary has only {vocab_size} tokens.")
