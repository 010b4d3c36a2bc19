"""Structured output: which tokens may come next, so that the answer follows the grammar and ends within its limit.

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

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import partial

import numpy as np
from llguidance import LLMatcher

from ..errors import UsageError
from ..text.tokenizer import Tokenizer
from .constraint import Bits, Constraint
from .either import EitherConstraint
from .json_schema import compile_schema
from .reasoning import BEGIN, END, Reasoning, ReasoningConstraint, end_plan
from .repetitions import Repetitions
from .structured_output import StructuredOutput as StructuredOutput
from .tools.calls import ToolCalls
from .tools.constraint import CallConstraint
from .tools.parser import opening_of
from .tools.xml_parameters import VALUE_END
from .vocabulary import Hints, Vocabulary, bits_of

# The maximum steps of a search, when a grammar is compiled and for each token.
_COMPILING, _GENERATING = 8192, 256
_MAX_SKIPPED = 32
_MAX_PATTERNS, _LONGEST_HINT = 8, 32
_MAX_PLANS, _LONGEST_CACHED = 1024, 256
_MAX_FOUND = 8


class Grammars:
    """Compiles the grammars of one model and caches them by `StructuredOutput` (least recently used). Thread-safe.

    Args:
        vocab_size: columns of the logits; may exceed the number of tokens.
        capacity: maximum number of cached grammars.

    Raises:
        UnsupportedError: the bytes of the tokens cannot be derived from tokenizer.json.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, capacity: int = 64) -> None:
        self._vocabulary = Vocabulary(tokenizer, vocab_size)
        self._capacity = capacity
        self._compiled: OrderedDict[StructuredOutput, Future[_Compiled]] = OrderedDict()
        self._lock = threading.Lock()

    def constraints(
        self,
        wanted: StructuredOutput,
        max_tokens: int,
        end_token_ids: Collection[int],
        reasoning: Reasoning | None = None,
    ) -> Callable[[], Constraint]:
        """Return a function that creates the constraint of one answer of at most `max_tokens` tokens.

        The end token does not count. Compiling may take seconds; the returned function is fast.

        reasoning: what may come before the structure.

        Raises:
            UsageError: the grammar or schema cannot be compiled, no answer within the limit was found, the model has
                no end token, or one of `end_token_ids` is ordinary text.
        """
        if not end_token_ids:
            raise UsageError("Structured output needs a model with an end token; pass one in stop_token_ids.")
        text = [token for token in end_token_ids if self._vocabulary.is_text(token)]
        if text:
            raise UsageError(
                "With structured output (a response format, or tools), stop_token_ids must be special tokens; "
                f"{text[0]} is text.",
                "stop_token_ids",
            )
        if reasoning is not None:
            return self._after_reasoning(wanted, max_tokens, end_token_ids, reasoning)
        calls = wanted.tool_calls
        if calls is None or wanted.is_whole:
            return self._whole(wanted, max_tokens, end_token_ids)[0]
        begin: Callable[[str, int], GrammarConstraint | None] = _refuse
        if calls.tools:
            # Compile now, so that no answer has to wait for it.
            begin = partial(self._from_calls, self.compiled(wanted).result(), end_token_ids)
        shown = _shown(calls, self._vocabulary)
        return partial(CallConstraint, opening_of(calls), self._vocabulary, end_token_ids, shown, begin)

    def _after_reasoning(
        self, wanted: StructuredOutput, max_tokens: int, end_token_ids: Collection[int], reasoning: Reasoning
    ) -> Callable[[], Constraint]:
        begin: Callable[[], Constraint]
        reserve = None
        if wanted.is_whole:
            begin, reserve = self._whole(wanted, max_tokens, end_token_ids, len(end_plan(self._vocabulary)))
        else:
            begin = self.constraints(wanted, max_tokens, end_token_ids)
        shown = frozenset(token for tag in (BEGIN, END) for token in self._vocabulary.special(tag))
        return partial(ReasoningConstraint, reasoning, self._vocabulary, end_token_ids, begin, reserve, shown)

    def _whole(
        self, wanted: StructuredOutput, max_tokens: int, end_token_ids: Collection[int], before: int = 0
    ) -> tuple[Callable[[], Constraint], int]:
        """The constraint of an answer that must have the structure, and the number of tokens that suffice for it.

        If it may have one of two, a part for which `max_tokens` is too small is left out. before: as for
        _from_beginning.
        """
        fitting: list[Callable[[], GrammarConstraint]] = []
        refused = []
        reserve = 0
        for part in wanted.parts:
            try:
                fitting.append(self._from_beginning(part, max_tokens, end_token_ids, before))
            except UsageError as error:
                if error.field != "max_tokens":
                    raise
                refused.append(error)
            else:
                reserve = max(reserve, len(self.compiled(part).result().plan or ()))
        if not fitting:
            raise refused[0]
        if len(fitting) == 1:
            return fitting[0], reserve
        answer, calls = fitting
        return lambda: EitherConstraint(answer(), calls()), reserve

    def _from_beginning(
        self, wanted: StructuredOutput, max_tokens: int, end_token_ids: Collection[int], before: int = 0
    ) -> Callable[[], "GrammarConstraint"]:
        """before: tokens that the answer needs before the structure."""
        compiled = self.compiled(wanted).result()
        if compiled.plan is None:
            raise UsageError(
                "No complete answer of the requested structure was found. Either there is none, or the structure is "
                "too large (an object may have about 600 optional properties); simplify it."
            )
        if before + len(compiled.plan) > max_tokens:
            raise UsageError(
                f"max_tokens ({max_tokens}) is too small for the requested structure: the shortest answer found has "
                f"{before + len(compiled.plan)} tokens.",
                "max_tokens",
            )
        return partial(GrammarConstraint, self._vocabulary, compiled, end_token_ids)

    def _from_calls(
        self, compiled: "_Compiled", end_token_ids: Collection[int], text: str, left: int
    ) -> "GrammarConstraint | None":
        """The constraint for calls that begin with `text`; None if `text` is invalid or `left` tokens are too few."""
        constraint = GrammarConstraint(self._vocabulary, compiled, end_token_ids)
        return constraint if constraint.start_after(text.encode("latin-1"), left) else None

    def compiled(self, wanted: StructuredOutput, submit: Callable[..., object] | None = None) -> "Future[_Compiled]":
        """The future of the compiled grammar, shared by all requests for the same structure.

        submit: the method of an executor that compiles it; None: compile it in this call. The last caller that waits
        for the future may cancel it.
        """
        with self._lock:
            compiled = self._compiled.get(wanted)
            if compiled is not None and not compiled.cancelled():
                self._compiled.move_to_end(wanted)
                return compiled
            compiled = self._compiled[wanted] = Future()
        if submit is None:
            self._compile(wanted, compiled)
        else:
            submit(self._compile, wanted, compiled)
        return compiled

    def _compile(self, wanted: StructuredOutput, compiled: "Future[_Compiled]") -> None:
        if not compiled.set_running_or_notify_cancel():
            self._forget(wanted, compiled)
            return
        try:
            result = _Compiled(self._vocabulary, wanted)
        except BaseException as error:
            self._forget(wanted, compiled)
            compiled.set_exception(error)
            del compiled  # avoids a reference cycle: the future holds the error, whose traceback holds this frame
        else:
            compiled.set_result(result)
            with self._lock:
                done = [key for key, one in self._compiled.items() if one.done()]
                for key in done[: max(0, len(done) - self._capacity)]:
                    del self._compiled[key]

    def _forget(self, wanted: StructuredOutput, compiled: "Future[_Compiled]") -> None:
        with self._lock:
            if self._compiled.get(wanted) is compiled:
                del self._compiled[wanted]


class GrammarConstraint:
    """A `Constraint` based on llguidance, created by the function that `Grammars.constraints` returns."""

    def __init__(self, vocabulary: Vocabulary, compiled: "_Compiled", end_token_ids: Collection[int]) -> None:
        self._vocabulary = vocabulary
        self._matcher = compiled.matcher.deep_copy()
        self._plan = list(compiled.plan or ())
        self._found: list[list[int]] = []  # plans found by searches, the latest first
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
        self._matcher.consume_token(token)  # may reach a limit of llguidance's; then the plan is followed
        self._text += self._vocabulary.text([token])

    def start_after(self, text: bytes, left: int) -> bool:
        """Start after `text`; False if the text is invalid or `left` tokens do not suffice to complete it."""
        if text:
            if not self._matcher.consume_tokens(self._vocabulary.tokens(text)):
                return False
            self._text = text
            self._repetitions = self._repetitions and self._repetitions.after(text)
            self._plan = self._vocabulary.find_plan(self._matcher, self._compiled.hints, _COMPILING) or []
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
        forced = matcher.compute_ff_tokens()
        for beginning, first in (([], 1), (forced, 0)) if forced else (([], 1),):
            for place in range(first, min(len(self._plan), _MAX_SKIPPED)):
                plan = beginning + self._plan[place:]
                if len(plan) <= left and self._vocabulary.ends(matcher, plan):
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

    def _rest_of_plan(self, new: bytes) -> list[int] | None:
        """The plan after the text `new`, which must occur near its beginning or share a prefix with it; else None."""
        near = len(new) + 16
        texts: list[bytes] = []
        size = 0
        for token in self._plan:
            if size >= near:
                break
            texts.append(self._vocabulary.text([token]))
            size += len(texts[-1])
        old = b"".join(texts)
        place = old.find(new, 0, near)
        done = place + len(new) if place >= 0 else _common(old, new)
        if not done:
            return None
        for number, text in enumerate(texts):
            if done < len(text):
                token = self._plan[number]
                begun = self._vocabulary.rest(token, done) if done else [token]
                return [*begun, *self._plan[number + 1 :]]
            done -= len(text)
        return self._plan[len(texts) :]


class _Compiled:
    """A compiled grammar: the matcher before the first token, and the plan of a short answer."""

    def __init__(self, vocabulary: Vocabulary, wanted: StructuredOutput) -> None:
        calls = wanted.tool_calls
        source = _source(wanted, vocabulary)
        if wanted.grammar is not None:
            _, messages = LLMatcher.validate_grammar_with_warnings(source, vocabulary.backend)
            if messages:  # warnings are about parts that would not be enforced
                raise UsageError(f"The requested structure cannot be enforced: {messages[0][:500]}")
        self.matcher = LLMatcher(vocabulary.backend, source, log_level=0)
        if self.matcher.is_error():
            if calls is not None:
                _raise_for_tool(calls, vocabulary)
            raise UsageError(f"The requested structure cannot be enforced: {self.matcher.get_error()[:500]}")
        self.has_calls = calls is not None
        self.unwatched_from = None if calls is None else 0
        self.shown = frozenset() if calls is None else _shown(calls, vocabulary)
        self.repetitions = wanted.repetitions()
        self.hints = _hints(wanted, vocabulary)
        shortest = vocabulary.tokens((wanted.compiled.shortest or "").encode()) if wanted.compiled else []
        if shortest and vocabulary.ends(self.matcher, shortest):
            self.plan: list[int] | None = shortest
        else:
            self.plan = vocabulary.find_plan(self.matcher, self.hints, _COMPILING)
        if calls is not None:
            self._plan_each_call(calls, vocabulary)
        if self.plan and self.repetitions and self.repetitions.after(vocabulary.text(self.plan)) is None:
            self.plan = None
        self._vocabulary = vocabulary
        self._plans: dict[bytes, list[int] | None] = {}

    def find_plan(self, text: bytes, matcher: LLMatcher) -> list[int] | None:
        """A plan for `text`, which `matcher` has read. Short texts are cached, because answers often begin alike."""
        if len(text) > _LONGEST_CACHED:
            return self._vocabulary.find_plan(matcher, self.hints, _GENERATING)
        if text not in self._plans:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[text] = self._vocabulary.find_plan(matcher, self.hints, _GENERATING)
        return self._plans[text]

    def _plan_each_call(self, calls: ToolCalls, vocabulary: Vocabulary) -> None:
        """Replace the plan by the shortest call of a tool that is found, if it is shorter."""
        tag = vocabulary.tokens(calls.tag.encode()) if calls.tag else []
        for text in calls.beginnings():
            beginning, state = tag + vocabulary.tokens(text.encode()), self.matcher.deep_copy()
            if state.consume_tokens(beginning):
                rest = vocabulary.find_plan(state, self.hints, _COMPILING // len(calls.tools))
                if rest is not None and (self.plan is None or len(beginning) + len(rest) < len(self.plan)):
                    self.plan = beginning + rest


def _shown(calls: ToolCalls, vocabulary: Vocabulary) -> frozenset[int]:
    """The special tokens that are part of the text of calls."""
    return frozenset(token for marker in calls.style.all_markers for token in vocabulary.special(marker))


def _refuse(text: str, left: int) -> None:
    """Refuse all calls."""


def _raise_for_tool(calls: ToolCalls, vocabulary: Vocabulary) -> None:
    """Raises: UsageError: the parameters of a tool cannot be enforced; the message names the tool."""
    for tool in calls.tools:
        source = LLMatcher.grammar_from_lark(tool.compiled.grammar)
        _, messages = LLMatcher.validate_grammar_with_warnings(source, vocabulary.backend)
        if messages:
            raise UsageError(f"The parameters of the tool {tool.name} cannot be enforced: {messages[0][:500]}")


def _hints(wanted: StructuredOutput, vocabulary: Vocabulary) -> Hints:
    """Texts that may complete a string of some pattern, longest first, since shorter ones are for states further on in
    it; and the markup of calls."""
    texts = wanted.examples()[:_MAX_PATTERNS]
    if wanted.is_json:
        texts = [json.dumps(text, ensure_ascii=False)[1:-1] for text in texts]
    ends = {text[place:] for text in texts for place in range(min(len(text), _LONGEST_HINT))}
    strings = [vocabulary.tokens(text.encode()) for text in sorted(ends, key=lambda text: (-len(text), text))]
    strings = [*vocabulary.quote, *strings] if wanted.is_json else [*strings, *vocabulary.quote]
    if wanted.tool_calls is None:
        return Hints(strings)
    style = wanted.tool_calls.style
    # The markers that end something come after those that begin it.
    markup = [vocabulary.tokens(marker.encode()) for marker in reversed(style.all_markers)]
    return Hints(strings, markup, [vocabulary.tokens(VALUE_END.encode())] if style.arguments == "xml" else ())


def _common(one: bytes, other: bytes) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _source(wanted: StructuredOutput, vocabulary: Vocabulary) -> str:
    calls = wanted.tool_calls
    if calls is not None:
        return LLMatcher.grammar_from_lark(calls.grammar(vocabulary.symbol))
    if wanted.regex is not None:
        return LLMatcher.grammar_from_regex(wanted.regex)
    if wanted.choice is not None:
        return LLMatcher.grammar_from_regex("|".join(f"({re.escape(text)})" for text in wanted.choice))
    if wanted.grammar is not None:
        return LLMatcher.grammar_from_lark(wanted.grammar)
    return LLMatcher.grammar_from_lark((wanted.compiled or compile_schema({"type": "object"})).grammar)
