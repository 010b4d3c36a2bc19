"""Samples the next token of a request from the model's logits.

The order of operations is vLLM's: grammar, logit_bias, min_tokens, penalties (repetition, then frequency and presence),
temperature, filters (`draw`).
"""

import copy
import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ..errors import UsageError
from ..kernels.arrays import Array
from ..structured.constraint import Bits, Constraint
from .draw import NEEDS_MASK, Floats, Integers, TokenLogprobs, draw, draw_masked, log_probabilities
from .params import SamplingParams as SamplingParams
from .penalties import Edit, History

_TRIES = 4
_MOST_LIKELIEST = 64
"""More tokens are not searched for on the GPU; then the whole row is copied."""
_UNIFORM_BITS = 48  # fewer than 53, so that rounding uniform · total cannot reach the total


class Sampler:
    """Samples the tokens of one answer.

    Token n depends only on params, seed, index, n, the logits, and the tokens of the prompt and the answer.

    Attributes:
        seed: the seed in use, also if params has none.
        index: the number of the answer within its request.
        step: number of tokens sampled so far.
        logprobs: the log-probabilities of the sampled tokens, if params requests them. They are the model's, before
            penalties, temperature and filters, as in vLLM.

    Args:
        prompt_ids: the prompt, for the repetition penalty.
        vocab_size: columns of the logits; token ids in `params` must be smaller.
        end_token_ids: the model's end tokens; unused with params.ignore_eos.
        constraint: restricts the answer; its end tokens must be those of this sampler.

    Raises:
        UsageError: logit_bias or stop_token_ids has a token that is not in the vocabulary, or params has a
            structured_output and there is no constraint.
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
        self._draw = 0
        self.step = 0
        self.logprobs: list[TokenLogprobs] = []
        self._ends = frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else end_token_ids)
        # The configs of some models have end tokens without logits.
        self._end_ids = np.array([i for i in self._ends if vocab_size is None or i < vocab_size], dtype=np.int64)
        self._bias_ids = np.array(list(bias), dtype=np.int64)
        self._biases = np.array(list(bias.values()))
        self._history: History | None = None
        if params.repetition_penalty != 1.0:
            self._history = History(prompt_ids)
        elif params.presence_penalty or params.frequency_penalty:
            self._history = History(())

    def for_answer(self, index: int, constraint: Constraint | None = None) -> "Sampler":
        """The sampler of answer `index` to the same request, before its first token; it shares memory with this one."""
        other = copy.copy(self)
        other.index, other.constraint, other.step, other.logprobs = index, constraint, 0, []
        other._history = None if self._history is None else self._history.beginning()
        return other

    def for_another_draw(self, constraint: Constraint | None) -> "Sampler":
        """The sampler of the next draw of the same answer, with other random numbers. A greedy answer would come out
        the same again, so temperature 0 becomes 1."""
        other = self.for_answer(self.index, constraint)
        other._draw = self._draw + 1
        other.params = replace(self.params, temperature=self.params.temperature or 1.0)
        return other

    def is_end(self, token: int) -> bool:
        """Whether `token` ends the answer: an end token of the model or one of stop_token_ids."""
        return token in self._ends

    @property
    def must_end(self) -> bool:
        """Whether the answer is complete without an end token, because the constraint lets nothing follow."""
        return self.constraint is not None and self.constraint.must_end

    @property
    def is_cut(self) -> bool:
        """Whether the answer ends before its last token, which starts a call that would exceed the limit."""
        return self.constraint is not None and self.constraint.is_cut

    @property
    def is_past_end(self) -> bool:
        """Whether the answer was complete before its last token, which does not belong to it."""
        return self.constraint is not None and self.constraint.is_past_end

    def sample(self, logits: Array) -> int:
        """Sample the next token from logits [vocab] and advance.

        Raises:
            UsageError: logits is not one row of floats.
            FaquantError: the logits contain NaN or +inf, or only -inf; the sampler is unchanged.
        """
        return sample_rows(_as_one_row(logits), [self])[0]

    @property
    def _ends_are_out(self) -> bool:
        return self.step < self.params.min_tokens and not self.must_end

    @property
    def _draws_from_all(self) -> bool:
        """Whether the first draw is from all tokens; not with filters, which must be applied after the mask."""
        params = self.params
        is_unfiltered = params.temperature == 0.0 or (params.top_k <= 0 and params.top_p == 1.0 and params.min_p == 0.0)
        return self.constraint is None or self.constraint.is_free or is_unfiltered

    @property
    def _decided_by(self) -> int:
        """How many of the likeliest tokens decide the next one; 0: all may matter."""
        params = self.params
        count = 1 if params.temperature == 0.0 else params.top_k
        is_edited = self._bias_ids.size or self._ends_are_out or self._history is not None
        if is_edited or self.constraint is not None or params.logprobs is not None or count > _MOST_LIKELIEST:
            return 0
        return max(count, 0)

    def _uniform(self, attempt: int = 0) -> float:
        if not self.params.temperature:
            return 0.0
        return uniform(self.seed, self.step, self.index, attempt + self._draw * (_TRIES + 1))

    @property
    def _left(self) -> int:
        """The number of tokens that the answer may have after the next one."""
        return self.params.max_tokens - self.step - 1

    def _edit(self, row: Floats) -> "Edit | None":
        """Apply the bias, min_tokens and the penalties to a row in place; None if there are none."""
        parts: list[Integers] = [self._bias_ids] if self._bias_ids.size else []
        if self._ends_are_out:
            parts.append(self._end_ids)
        if self._history is not None:
            parts.append(self._history.ids)
        if not parts:
            return None
        edit = Edit(row, np.concatenate(parts))
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
    """Sample the next token of each sampler from logits [samplers, vocab]; equivalent to calling `sample` per row.

    Raises:
        UsageError: logits has another shape or dtype.
        FaquantError: a row contains NaN or +inf, or only -inf. All samplers are unchanged, so that each row can still
            be sampled on its own.
    """
    if hasattr(logits, "topk") and logits.ndim == 2 and len(logits) == len(samplers):
        return _sample_tensor(logits, samplers)
    return _sample_array(logits, samplers)


def _sample_tensor(logits: Array, samplers: Sequence[Sampler]) -> list[int]:
    """As sample_rows, for a torch tensor, which may lie on a GPU. Only the likeliest tokens of rows that need no others
    are copied from there."""
    tokens = _from_likeliest(logits, samplers)
    rest = [place for place in range(len(samplers)) if place not in tokens]
    others: list[int] = []
    if rest:
        some = logits if len(rest) == len(samplers) else logits[rest]
        others = _sample_array(some, [samplers[place] for place in rest])
    # Only now, because the others may fail, and then no sampler may have changed.
    for place, token in tokens.items():
        samplers[place]._advance(token)
    tokens.update(zip(rest, others, strict=True))
    return [tokens[place] for place in range(len(samplers))]


def _from_likeliest(logits: Array, samplers: Sequence[Sampler]) -> dict[int, int]:
    """The tokens of the rows that few of the likeliest tokens decide, by the row's number."""
    counts = {place: count for place, sampler in enumerate(samplers) if (count := sampler._decided_by)}
    if not counts or logits.shape[1] <= max(counts.values()):
        return {}
    places = list(counts)
    some = logits if len(places) == len(samplers) else logits[places]
    # One more, because equal scores have to be told apart by their ids, or all kept.
    found = some.float().topk(max(counts.values()) + 1)
    scores, ids = found.values.cpu().numpy(), found.indices.cpu().numpy()
    last = np.array([counts[place] for place in places])
    clear = np.isfinite(scores[:, 0]) & (scores[np.arange(len(places)), last - 1] > scores[:, -1])
    scores, ids = scores[clear], ids[clear]
    places = [place for place, is_clear in zip(places, clear, strict=True) if is_clear]
    order = ids.argsort(axis=1)
    scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    asked = [samplers[place] for place in places]
    drawn = draw(scores, [sampler.params for sampler in asked], [sampler._uniform() for sampler in asked])
    return {place: int(row[token]) for place, row, token in zip(places, ids, drawn, strict=True)}


def _sample_array(logits: Array, samplers: Sequence[Sampler]) -> list[int]:
    rows = _floats(logits, len(samplers))
    if not samplers:
        return []
    edits: list[Edit | None] = []
    try:
        edits += (sampler._edit(row) for sampler, row in zip(samplers, rows, strict=True))
        filtered = {place for place, sampler in enumerate(samplers) if not sampler._draws_from_all}
        uniforms = [sampler._uniform() for sampler in samplers]
        tokens = draw(rows, [sampler.params for sampler in samplers], uniforms, before_mask=filtered)
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
    """Draw again, from the mask, for the rows that have no token yet, or one that their constraint does not admit.

    A token that is drawn from all tokens and then admitted has the same distribution as one drawn from the admitted
    tokens, and computing the mask takes longer.
    """
    constraints = {place: one.constraint for place, one in enumerate(samplers) if one.constraint is not None}
    masks: dict[int, Bits] = {}
    begun: set[int] = set()  # rows whose draw before the mask was the first draw from it, too
    for place, constraint in constraints.items():
        sampler, token = samplers[place], tokens[place]
        if token != NEEDS_MASK and constraint.admits(token, sampler._left):
            continue
        bits = constraint.mask()
        mask = masks[place] = np.full(-(-rows.shape[1] // 8), 0xFF, np.uint8) if bits is None else bits.copy()
        if sampler._draws_from_all:
            _rule_out(mask, token)
        elif token != NEEDS_MASK and mask[token >> 3] >> (token & 7) & 1:
            begun.add(place)
            _rule_out(mask, token)
    for number in range(_TRIES):
        places = [place for place in masks if number or place not in begun]
        asked = [samplers[place] for place in places]
        # The draw from all tokens has used the first uniform number.
        uniforms = [sampler._uniform(number + sampler._draws_from_all) for sampler in asked]
        some = [masks[place] for place in places]
        drawn = draw_masked(rows, places, some, [sampler.params for sampler in asked], uniforms) if places else []
        for place, token in zip(places, drawn, strict=True):
            if token >= 0 and constraints[place].admits(token, samplers[place]._left):
                tokens[place] = token
                del masks[place]
            elif token >= 0:
                _rule_out(masks[place], token)
        if not masks:
            return
    for place in masks:  # all tokens drawn would exceed the limit
        tokens[place] = constraints[place].fallback()
        constraints[place].admits(tokens[place], samplers[place]._left)


def uniform(seed: int, step: int, index: int = 0, attempt: int = 0) -> float:
    """A number in [0, 1) that depends only on the arguments, not on a generator state that other requests change."""
    # Seeds of 2^63 and above are the two's complement of negative ones: the same 64 bits.
    message = (seed % 2**64).to_bytes(8, "little") + step.to_bytes(8, "little")
    if index or attempt:
        message += index.to_bytes(8, "little")
    if attempt:
        message += attempt.to_bytes(8, "little")
    digest = hashlib.blake2b(message, digest_size=8, person=b"faquant-draw").digest()
    return float((int.from_bytes(digest, "little") >> (64 - _UNIFORM_BITS)) / 2**_UNIFORM_BITS)


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
        logits = logits.detach().float().cpu()  # NumPy has no bfloat16
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
