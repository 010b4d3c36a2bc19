"""From the model's logits to a request's next token.

The order is vLLM's: grammar, logit_bias, min_tokens, penalties (repetition, then frequency and presence), temperature,
filters (`draw`).
"""

import copy
import hashlib
import math
import os
from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import UsageError
from ..kernels.arrays import Array
from ..structured.constraint import Bits, Constraint
from .draw import Floats, Integers, TokenLogprobs, check_maximum, draw, draw_masked, log_probabilities
from .params import SamplingParams as SamplingParams

_TRIES = 4
_UNIFORM_BITS = 48  # leaves room below 1.0 for the rounding of uniform · total


class Sampler:
    """The draws of one answer. Token number n depends on params, seed, index, n, the logits and its own tokens alone.

    `seed` is the seed in use, also where params had none; `index` counts a request's answers; `step` is the number of
    tokens chosen so far. `logprobs` has theirs, where params ask for them: those of the model itself, before penalties,
    temperature and filters, as vLLM reports them.

    Args:
        prompt_ids: they count for the repetition penalty.
        vocab_size: columns of the logits; token ids of `params` must be below it.
        end_token_ids: what ends an answer of this model; not looked at with params.ignore_eos.
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
        constraint: Constraint | None = None,
    ) -> None:
        bias: dict[int, float] = dict(params.logit_bias)
        if vocab_size is not None:
            _check_token_ids(params, vocab_size)
        if params.structured_output is not None and constraint is None:
            raise UsageError("Structured output is not supported here: the sampler was given no constraint.")
        self.params = params
        self.seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else params.seed
        self.index = 0
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

    def for_answer(self, index: int, constraint: Constraint | None = None) -> "Sampler":
        """That of answer `index` to the same request, at its beginning: with draws of its own, in the same memory."""
        other = copy.copy(self)
        other.index, other.constraint, other.step, other.logprobs = index, constraint, 0, []
        other._history = None if self._history is None else self._history.beginning()
        return other

    def is_end(self, token: int) -> bool:
        """Whether `token` ends the answer: an end token of the model or one of stop_token_ids; it is no text."""
        return token in self._ends

    @property
    def must_end(self) -> bool:
        """Whether the constraint lets nothing follow: the answer is complete, though its last token is text."""
        return self.constraint is not None and self.constraint.must_end

    @property
    def is_cut(self) -> bool:
        """Whether the answer ends before its last token, because too few are left for what that would begin."""
        return self.constraint is not None and self.constraint.is_cut

    def sample(self, logits: Array) -> int:
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
    def _draws_from_all(self) -> bool:
        """Whether the whole row is drawn from, and not what a mask leaves, which filters would have to see."""
        params = self.params
        is_unfiltered = params.temperature == 0.0 or (params.top_k <= 0 and params.top_p == 1.0 and params.min_p == 0.0)
        return self.constraint is None or self.constraint.is_free or is_unfiltered

    def _uniform(self, attempt: int = 0) -> float:
        return uniform(self.seed, self.step, self.index, attempt) if self.params.temperature else 0.0

    @property
    def _left(self) -> int:
        """Tokens that the answer may have after the next."""
        return self.params.max_tokens - self.step - 1

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


def sample_rows(logits: Array, samplers: Sequence[Sampler]) -> list[int]:
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
        # Where a mask comes first, the scores are only checked here.
        params = [sampler.params if sampler._draws_from_all else None for sampler in samplers]
        tokens = draw(rows, params, [sampler._uniform() for sampler in samplers])
        _draw_admitted(rows, samplers, tokens)
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


def _draw_admitted(rows: Floats, samplers: Sequence[Sampler], tokens: list[int]) -> None:
    """Draw again, from what their constraints admit, for those whose token is not admitted or was not drawn.

    What is drawn from all and admitted is as good as drawn from the admitted, whose mask takes longer to find.
    """
    constraints = {place: one.constraint for place, one in enumerate(samplers) if one.constraint is not None}
    masks: dict[int, Bits] = {}
    for place, constraint in constraints.items():
        sampler = samplers[place]
        if sampler._draws_from_all and constraint.admits(tokens[place], sampler._left):
            continue
        bits = constraint.mask()
        masks[place] = np.full(-(-rows.shape[1] // 8), 0xFF, np.uint8) if bits is None else bits.copy()
        if sampler._draws_from_all:
            _rule_out(masks[place], tokens[place])
    for number in range(_TRIES):
        if not masks:
            return
        places = list(masks)
        asked = [samplers[place] for place in places]
        # Where a token was drawn from all, that has used the first number.
        uniforms = [sampler._uniform(number + sampler._draws_from_all) for sampler in asked]
        drawn = draw_masked(rows, places, list(masks.values()), [sampler.params for sampler in asked], uniforms)
        for place, token in zip(places, drawn, strict=True):
            if token >= 0 and constraints[place].admits(token, samplers[place]._left):
                tokens[place] = token
                del masks[place]
            elif token >= 0:
                _rule_out(masks[place], token)
    for place in masks:  # what is likely leads too far for the tokens left
        tokens[place] = constraints[place].fallback()
        constraints[place].admits(tokens[place], samplers[place]._left)


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
        self._prompt_ids = np.array(list(dict.fromkeys(prompt_ids)), dtype=np.int64)
        self._prompt_places = {token: place for place, token in enumerate(self._prompt_ids.tolist())}
        self._begin()

    def beginning(self) -> "_History":
        """With the same prompt and no answer."""
        other = copy.copy(self)
        other._begin()
        return other

    def _begin(self) -> None:
        self._places: dict[int, int] = {}  # of tokens that the prompt does not have
        self._ids = self._prompt_ids  # replaced before anything is written behind its end
        self._counts = np.zeros(self._ids.size)

    @property
    def _size(self) -> int:
        return len(self._prompt_places) + len(self._places)

    @property
    def ids(self) -> Integers:
        return self._ids[: self._size]

    def add(self, token: int) -> None:
        place = self._prompt_places.get(token)
        if place is None:
            place = self._places.setdefault(token, self._size)
        if place >= self._ids.size:
            room = np.zeros(64 + place, dtype=np.int64)  # doubled, not to copy it all for each token
            self._ids, self._counts = np.concatenate((self._ids, room)), np.concatenate((self._counts, room))
        self._ids[place] = token
        self._counts[place] += 1

    def penalize(self, scores: Floats, params: SamplingParams) -> None:
        """Change scores [vocab] in place."""
        ids, counts = self.ids, self._counts[: self._size]
        old = scores[ids].astype(np.float64)  # where nothing overflows
        old = np.where(old < 0, old * params.repetition_penalty, old / params.repetition_penalty)
        old -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
        largest = np.finfo(scores.dtype).max
        scores[ids] = np.where(np.isinf(old), old, np.clip(old, -largest, largest))


def _rule_out(mask: Bits, token: int) -> None:
    mask[token >> 3] &= 0xFF ^ (1 << (token & 7))


def _as_one_row(logits: Array) -> Array:
    if logits.ndim != 1:
        raise _wrong_shape(logits)
    return logits[None]


def _floats(logits: Array, rows: int) -> Floats:
    if logits.ndim != 2 or logits.shape[0] != rows or "float" not in str(logits.dtype):
        raise _wrong_shape(logits)
    if hasattr(logits, "detach"):
        logits = logits.detach().float().cpu()  # torch has 16-bit floats that NumPy lacks
    array: Floats = np.ascontiguousarray(logits, dtype=np.float32)
    return array if array.flags.writeable else array.copy()


def _wrong_shape(logits: Array) -> UsageError:
    shape = list(logits.shape)
    return UsageError(f"logits must be one row of floats [vocab] for each sampler, not {logits.dtype} {shape}.")


def _check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Raises: UsageError: logit_bias or stop_token_ids has a token that is not in the vocabulary."""
    for name, ids in (("logit_bias", dict(params.logit_bias)), ("stop_token_ids", params.stop_token_ids)):
        for token in ids:
            if token >= vocab_size:
                raise UsageError(
                    f"{name} has the token {token}, but the vocabulary has only {vocab_size} tokens.", name
                )
