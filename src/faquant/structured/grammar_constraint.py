"""Which tokens may come next, so that the answer follows the grammar and ends within its limit.

llguidance determines which tokens continue a text of the grammar. That alone does not prevent an answer from reaching
max_tokens before it is complete. So each constraint keeps a plan: tokens that complete the text, never more than are
left. A token is admitted only if a plan that fits is known for the text with this token. The next token of the plan is
always admitted, because the rest of the plan completes the text.

An example: the schema `{"type": "array", "items": {"type": "string"}}`, max_tokens 6, and a tokenizer with one token
per byte. The model prefers `a`, then `,`, then `"`, then `[`, whatever the text is.

    text      left  plan  why
              6     []    the shortest answer, found when the schema was compiled
    [         5     ]     the grammar excludes a, the comma and the quote
    ["        4     "]    the grammar excludes a and the comma; a string can begin, and its plan fits
    ["a       3     "]    the model's choice; the plan still fits
    ["aa      2     "]    the model's choice; now the plan takes all tokens that are left
    ["aa"     1     ]     a and the comma leave 1 token, but their plan needs 2; the quote is next in the plan
    ["aa"]    0           the comma leaves no token for another string and the end; the bracket is next in the plan

If the sampler draws only refused tokens, it takes the plan's next token after a few tries (`fallback`).
"""

from collections.abc import Collection

import numpy as np
from llguidance import LLMatcher

from ..errors import UsageError
from .compiled_grammar import COMPILING, CompiledGrammar
from .constraint import Bits
from .repetitions import Repetitions
from .vocabulary import Vocabulary, bits_of

_MAX_SKIPPED = 32
_MAX_FOUND = 8


class GrammarConstraint:
    """A `Constraint` based on llguidance, created by the function that `Grammars.constraints` returns."""

    def __init__(self, vocabulary: Vocabulary, compiled: CompiledGrammar, end_token_ids: Collection[int]) -> None:
        self._vocabulary = vocabulary
        self._matcher = compiled.matcher.deep_copy()
        self._plan = list(compiled.plan or ())
        self._found: list[list[int]] = []  # plans found by searches, the latest first
        self._forced: list[int] = []  # the next tokens, if the grammar is known to force them
        self._compiled = compiled
        self._text = b""
        self._repetitions = compiled.repetitions
        self._ends = frozenset(end_token_ids)
        self._end_bits = bits_of(self._ends, vocabulary.size)
        self._text_bits = vocabulary.text_bits & ~self._end_bits
        # The last admitted token, and the plan and the repetitions after it. No plan: the token is past the end.
        self._tried: tuple[int, list[int] | None, Repetitions | None] | None = None
        self._ended = False
        self.shown = compiled.shown
        self.unwatched_from = compiled.unwatched_from
        self.is_cut = self.is_past_end = False

    @property
    def may_end(self) -> bool:
        return not self._plan if self._matcher.is_error() else bool(self._matcher.is_accepting())

    @property
    def must_end(self) -> bool:
        return self._ended or (self._matcher.is_stopped() and self.may_end)

    @property
    def is_free(self) -> bool:
        """Whether calls may end here. Whatever else the model wants to write then, it wants no further call."""
        return self._compiled.has_calls and self.may_end and not self.must_end

    def mask(self) -> Bits | None:
        if self.must_end:
            return self._end_bits
        if self.is_free:
            return None
        # The mask of forced text has one token. llguidance would tokenize all of that text again for each mask.
        self._forced = self._forced or self._matcher.compute_ff_tokens()
        if self._forced:
            bits = np.zeros_like(self._text_bits)
            bits[self._forced[0] >> 3] = 1 << (self._forced[0] & 7)
            return bits & self._text_bits
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)[: self._end_bits.size]
        if self._matcher.is_error():  # llguidance has reached a limit of its own: follow the plan
            return bits_of(self._plan[:1], self._vocabulary.size) if self._plan else self._end_bits
        bits = bits & self._text_bits
        return bits | self._end_bits if self.may_end else bits

    def admits(self, token: int, left: int) -> bool:
        self._tried = None
        if token in self._ends:
            return self.may_end
        plan, state = None, self._repetitions
        if self._text_bits[token >> 3] >> (token & 7) & 1:
            state = state and state.after(self._vocabulary.text([token]))
            if state is not None or self._repetitions is None:
                plan = self._plan[1:] if self._plan[:1] == [token] else self._plan_with(token, state, left)
        if plan is None and not self.is_free:
            return False
        self._tried = (token, plan, state)
        return True

    def fallback(self) -> int:
        return self._plan[0] if self._plan else min(self._ends)

    def accept(self, token: int) -> None:
        if token in self._ends:
            self._ended = True
            return
        if self._tried is None or self._tried[0] != token:
            raise UsageError(f"The token {token} was not admitted before it was accepted.")
        _, plan, state = self._tried
        self._tried = None
        if plan is None:
            self._ended = self.is_past_end = True
            return
        self._plan, self._repetitions = plan, state
        self._forced = self._forced[1:] if self._forced[:1] == [token] else []
        self._matcher.consume_token(token)  # may reach a limit of llguidance's; then the plan is followed
        self._text += self._vocabulary.text([token])

    def start_after(self, text: bytes, left: int) -> bool:
        """Start after `text`; False if the text is invalid or `left` tokens do not suffice to complete it."""
        if text:
            if not self._matcher.consume_tokens(self._vocabulary.tokens(text)):
                return False
            self._text = text
            self._repetitions = self._repetitions and self._repetitions.after(text)
            self._plan = self._vocabulary.find_plan(self._matcher, self._compiled.hints, COMPILING) or []
        return len(self._plan) <= left and self._vocabulary.ends(self._matcher, self._plan)

    def _plan_with(self, token: int, state: Repetitions | None, left: int) -> list[int] | None:
        """As `_plan_after`, but the plan repeats no name or item of the text."""
        plan = self._plan_after(token, left)
        if plan is None or state is None or not state.depends_on_rest:
            return plan
        return self._plan_without_repetition(token, plan, state, left)

    def _plan_after(self, token: int, left: int) -> list[int] | None:
        """At most `left` tokens that complete the text followed by `token`; None if no such plan is found."""
        if self._matcher.is_error():
            return None
        # Often the old plan still works. If it works but is too long, a search would mostly find it again.
        valid = self._vocabulary.valid_length(self._matcher, [token, *self._plan])
        if valid == 0:
            return None
        if valid == len(self._plan) + 2:
            return self._plan if len(self._plan) <= left else None
        # If the token's text occurs near the beginning of the plan, the rest of the plan may work.
        plan = self._rest_of_plan(self._vocabulary.text([token]))
        if plan is not None and len(plan) <= left and self._vocabulary.ends(self._matcher, [token, *plan]):
            return plan
        # An end of the plan may work, perhaps after the tokens that the grammar forces now.
        matcher = self._matcher.deep_copy()
        if not matcher.consume_token(token):
            return None
        plan = self._end_of_plan(matcher, [], 1, left)
        if plan is None and (forced := matcher.compute_ff_tokens()):
            plan = self._end_of_plan(matcher, forced, 0, left)
        if plan is not None:
            return plan
        # Lists and calls repeat within an answer, and so do their plans. Plans of other answers must not be used:
        # which tokens are admitted would depend on concurrent requests.
        for plan in self._found:
            if len(plan) <= left and self._vocabulary.ends(matcher, plan):
                return plan
        found = self._compiled.find_plan(self._text + self._vocabulary.text([token]), matcher)
        if found is None:
            return None
        self._found = [found, *self._found[: _MAX_FOUND - 1]]
        return found if len(found) <= left else None

    def _plan_without_repetition(self, token: int, plan: list[int], state: Repetitions, left: int) -> list[int] | None:
        """The plan, or one like it, that repeats no name or item of the text with `token`; None if none is found."""
        for text in state.without_repetition(self._vocabulary.text(plan)):
            found = self._vocabulary.tokens(text)
            if len(found) <= left and self._vocabulary.ends(self._matcher, [token, *found]):
                return found
        return None

    def _end_of_plan(self, matcher: LLMatcher, before: list[int], first: int, left: int) -> list[int] | None:
        """`before` and the longest end of the plan, from its token `first` on, that complete the matcher's text."""
        for place in range(first, min(len(self._plan), _MAX_SKIPPED)):
            plan = before + self._plan[place:]
            if len(plan) <= left and self._vocabulary.ends(matcher, plan):
                return plan
        return None

    def _rest_of_plan(self, new: bytes) -> list[int] | None:
        """The plan after the text `new`, which must occur near its beginning or share a prefix with it; else None.

        If it does not, white space before `new` is ignored, because plans have as little of it as possible.
        """
        near = len(new) + 16
        texts: list[bytes] = []
        size = 0
        for token in self._plan:
            if size >= near:
                break
            texts.append(self._vocabulary.text([token]))
            size += len(texts[-1])
        old = b"".join(texts)
        done = _begun(old, new, near) or _begun(old, new.lstrip(), near)
        if not done:
            return None
        for number, text in enumerate(texts):
            if done < len(text):
                begun = self._plan[number : number + 2]
                return [*(self._vocabulary.rest(begun, done) if done else begun), *self._plan[number + 2 :]]
            done -= len(text)
        return self._plan[len(texts) :]


def _begun(text: bytes, new: bytes, near: int) -> int:
    """Up to where `text` is begun if `new` comes: the end of `new` in its first `near` bytes, or of a common prefix."""
    place = text.find(new, 0, near)
    if place >= 0:
        return place + len(new)
    return next(
        (place for place, (a, b) in enumerate(zip(text, new, strict=False)) if a != b), min(len(text), len(new))
    )
