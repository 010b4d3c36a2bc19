"""Answers of a given form: which tokens may come next, so that the answer has the form and ends within its tokens.

llguidance says which tokens continue a text of the grammar. That alone would let an answer run into its limit half
done. So beside the text goes a plan: tokens that end it, never more than are left. A token is admitted only if a plan
that fits is known after it; the next token of the old plan always is.
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
from .json_schema import OPTIONS
from .regex_example import example
from .structured_output import StructuredOutput as StructuredOutput
from .tools.calls import ToolCalls
from .tools.constraint import CallConstraint
from .tools.parser import opening_of
from .vocabulary import Vocabulary, bits_of

# How many steps a search may take, when a grammar is compiled and for each token.
_COMPILING, _GENERATING = 8192, 256
_MOST_SKIPPED = 32
_MOST_PATTERNS, _LONGEST_HINT = 8, 32
_MOST_KEPT, _LONGEST_KEPT = 1024, 256
_MOST_FOUND = 8


class Grammars:
    """The grammars of one model's requests, compiled once for each `StructuredOutput` and kept, the latest used.

    vocab_size: columns of the logits, which may be more than the tokenizer has tokens. Safe to use from many threads.

    Raises:
        UnsupportedError: the tokens' bytes cannot be told from tokenizer.json.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, capacity: int = 64) -> None:
        self._vocabulary = Vocabulary(tokenizer, vocab_size)
        self._capacity = capacity
        self._compiled: OrderedDict[StructuredOutput, Future[_Compiled]] = OrderedDict()
        self._lock = threading.Lock()

    def constraints(
        self, wanted: StructuredOutput, max_tokens: int, end_token_ids: Collection[int]
    ) -> Callable[[], Constraint]:
        """What makes the constraint of each new answer of at most `max_tokens` tokens, the end token not counted.

        Compiling may take seconds, making a constraint takes none.

        Raises:
            UsageError: the grammar or schema cannot be compiled, no answer so short was found, the model has no end
                token, or one of `end_token_ids` is ordinary text.
        """
        if not end_token_ids:
            raise UsageError("Structured output needs a model with an end token; give one in stop_token_ids.")
        text = [token for token in end_token_ids if self._vocabulary.is_text(token)]
        if text:
            raise UsageError(
                "With structured output (a response format, or tools), stop_token_ids must be special tokens; "
                f"{text[0]} is text.",
                "stop_token_ids",
            )
        calls = wanted.tool_calls
        if calls is None or calls.forced:
            return self._from_beginning(wanted, max_tokens, end_token_ids)
        begin: Callable[[str, int], GrammarConstraint | None] = _refuse
        if calls.tools:
            # Compiled now, before an answer waits for it.
            begin = partial(self._from_calls, self.compiled(wanted).result(), end_token_ids)
        shown = self._vocabulary.special(calls.style.tag)
        return partial(CallConstraint, opening_of(calls), self._vocabulary, end_token_ids, shown, begin)

    def _from_beginning(
        self, wanted: StructuredOutput, max_tokens: int, end_token_ids: Collection[int]
    ) -> Callable[[], "GrammarConstraint"]:
        compiled = self.compiled(wanted).result()
        if compiled.plan is None:
            raise UsageError(
                "No complete answer of the structure asked for was found. Either it has none, or it is too large (an "
                "object may have some 600 optional properties); make it simpler."
            )
        if len(compiled.plan) > max_tokens:
            raise UsageError(
                f"max_tokens ({max_tokens}) is too small for the structure asked for: the shortest answer found has "
                f"{len(compiled.plan)} tokens.",
                "max_tokens",
            )
        return partial(GrammarConstraint, self._vocabulary, compiled, end_token_ids)

    def _from_calls(
        self, compiled: "_Compiled", end_token_ids: Collection[int], text: str, left: int
    ) -> "GrammarConstraint | None":
        """Of calls that go on with `text`; None where that is wrong, or takes more tokens than are left."""
        constraint = GrammarConstraint(self._vocabulary, compiled, end_token_ids)
        return constraint if constraint.go_on(text.encode("latin-1"), left) else None

    def compiled(self, wanted: StructuredOutput, submit: Callable[..., object] | None = None) -> "Future[_Compiled]":
        """What `constraints` waits for, made once for all who want it, also at the same time.

        submit: an executor's, in which it is compiled; None: at once. Who gives up the future that is not yet done may
        cancel it, if nobody else waits for it.
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
            del compiled  # which holds the error, which holds this frame
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
    """`Constraint` by llguidance. Made by what `Grammars.constraints` gives."""

    def __init__(self, vocabulary: Vocabulary, compiled: "_Compiled", end_token_ids: Collection[int]) -> None:
        self._vocabulary = vocabulary
        self._matcher = compiled.matcher.deep_copy()
        self._plan = list(compiled.plan or ())
        self._found: list[list[int]] = []  # plans that searches have led to, the latest first
        self._compiled = compiled
        self._text = b""
        self._ends = frozenset(end_token_ids)
        self._end_bits = bits_of(self._ends, vocabulary.size)
        self._text_bits = vocabulary.text_bits & ~self._end_bits
        self._tried: tuple[int, list[int]] | None = None  # a token that was admitted, and the plan after it
        self._ended = False
        self.shown: frozenset[int] = frozenset()
        self.unwatched_from = compiled.unwatched_from
        self.is_cut = False

    @property
    def may_end(self) -> bool:
        return not self._plan if self._matcher.is_error() else bool(self._matcher.is_accepting())

    @property
    def must_end(self) -> bool:
        return self._ended or (self._matcher.is_stopped() and self.may_end)

    @property
    def is_free(self) -> bool:
        return False

    def mask(self) -> Bits:
        if self.must_end:
            return self._end_bits
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)[: self._end_bits.size]
        if self._matcher.is_error():  # too much for llguidance's limits: there is the plan
            return bits_of(self._plan[:1], self._vocabulary.size) if self._plan else self._end_bits
        bits = bits & self._text_bits
        return bits | self._end_bits if self.may_end else bits

    def admits(self, token: int, left: int) -> bool:
        self._tried = None
        if token in self._ends:
            return self.may_end
        if not self._text_bits[token >> 3] >> (token & 7) & 1:
            return False
        plan = self._plan[1:] if self._plan[:1] == [token] else self._plan_after(token, left)
        if plan is None:
            return False
        self._tried = (token, plan)
        return True

    def fallback(self) -> int:
        return self._plan[0] if self._plan else min(self._ends)

    def accept(self, token: int) -> None:
        if token in self._ends:
            self._ended = True
            return
        if self._tried is None or self._tried[0] != token:
            raise UsageError(f"The token {token} was not admitted before it was accepted.")
        self._plan = self._tried[1]
        self._matcher.consume_token(token)  # also where that is too much for it: there is the plan
        self._text += self._vocabulary.text([token])
        self._tried = None

    def go_on(self, text: bytes, left: int) -> bool:
        """At the beginning: behind this text, if it is right and `left` tokens suffice for the rest."""
        if text:
            if not self._matcher.consume_tokens(self._vocabulary.tokens(text)):
                return False
            self._text = text
            self._plan = self._vocabulary.way_out(self._matcher, self._compiled.within, _COMPILING) or []
        return len(self._plan) <= left and self._vocabulary.ends(self._matcher, self._plan)

    def _plan_after(self, token: int, left: int) -> list[int] | None:
        """At most `left` tokens that end the text with `token` behind it; None where none are known."""
        if self._matcher.is_error():
            return None
        # The old plan often still is one. Where it is and takes too long, a search would mostly find it again.
        right = self._vocabulary.right(self._matcher, [token, *self._plan])
        if right == 0:
            return None
        if right == len(self._plan) + 2:
            return self._plan if len(self._plan) <= left else None
        # Where the token stands in it or begins as it does, what comes after that may be one.
        plan = self._behind(self._vocabulary.text([token]))
        if plan is not None and len(plan) <= left and self._vocabulary.ends(self._matcher, [token, *plan]):
            return plan
        # Its end may be one, perhaps after what must come now.
        matcher = self._matcher.deep_copy()
        if not matcher.consume_token(token):
            return None
        forced = matcher.compute_ff_tokens()
        for beginning, first in (([], 1), (forced, 0)) if forced else (([], 1),):
            for place in range(first, min(len(self._plan), _MOST_SKIPPED)):
                plan = beginning + self._plan[place:]
                if len(plan) <= left and self._vocabulary.ends(matcher, plan):
                    return plan
        # Lists and calls come again within an answer, and so do the ways out of them. Those of other answers must not
        # count: what is admitted would depend on who else is there.
        for plan in self._found:
            if len(plan) <= left and self._vocabulary.ends(matcher, plan):
                return plan
        found = self._compiled.way_out(self._text + self._vocabulary.text([token]), matcher)
        if found is None:
            return None
        self._found = [found, *self._found[: _MOST_FOUND - 1]]
        return found if len(found) <= left else None

    def _behind(self, new: bytes) -> list[int] | None:
        """What the plan has behind a text that stands near its beginning, or as far as it begins with that."""
        texts = [self._vocabulary.text([token]) for token in self._plan]
        old = b"".join(texts)
        place = old.find(new, 0, len(new) + 16)
        done = place + len(new) if place >= 0 else _common(old, new)
        if not done:
            return None
        for number, text in enumerate(texts):
            if done < len(text):
                begun = self._vocabulary.tokens(text[done:]) if done else [self._plan[number]]
                return begun + self._plan[number + 1 :]
            done -= len(text)
        return []


class _Compiled:
    """A grammar before its first token, and a short answer of it."""

    def __init__(self, vocabulary: Vocabulary, wanted: StructuredOutput) -> None:
        calls = wanted.tool_calls
        source = _source(wanted, vocabulary)
        failed, messages = LLMatcher.validate_grammar_with_warnings(source, vocabulary.backend)
        if messages:  # a warning tells of something that would not be enforced
            if calls is not None:
                _blame(calls, vocabulary)
            raise UsageError(f"The structure asked for cannot be enforced: {messages[0][:500]}")
        self.matcher = LLMatcher(vocabulary.backend, source, log_level=0)
        if failed or self.matcher.is_error():
            raise UsageError(f"The structure asked for cannot be enforced: {self.matcher.get_error()[:500]}")
        self.unwatched_from = None if calls is None else 0
        hints = [vocabulary.tokens(text.encode()) for text in _hints(wanted)]
        self.within = [*vocabulary.quote, *hints] if wanted.is_json else [*hints, *vocabulary.quote]
        self.plan = vocabulary.way_out(self.matcher, self.within, _COMPILING)
        if calls is not None:
            self._plan_each_call(calls, vocabulary)
        self._vocabulary = vocabulary
        self._ways: dict[bytes, list[int] | None] = {}

    def way_out(self, text: bytes, matcher: LLMatcher) -> list[int] | None:
        """Tokens that end `text`, which `matcher` has read. Answers begin alike: short texts come again and again."""
        if len(text) > _LONGEST_KEPT:
            return self._vocabulary.way_out(matcher, self.within, _GENERATING)
        if text not in self._ways:
            if len(self._ways) >= _MOST_KEPT:
                self._ways.clear()
            self._ways[text] = self._vocabulary.way_out(matcher, self.within, _GENERATING)
        return self._ways[text]

    def _plan_each_call(self, calls: ToolCalls, vocabulary: Vocabulary) -> None:
        """Find the tool whose call is the shortest."""
        tag = vocabulary.tokens(calls.tag.encode()) if calls.tag else []
        for text in calls.beginnings():
            beginning, state = tag + vocabulary.tokens(text.encode()), self.matcher.deep_copy()
            if state.consume_tokens(beginning):
                rest = vocabulary.way_out(state, self.within, _COMPILING // len(calls.tools))
                if rest is not None and (self.plan is None or len(beginning) + len(rest) < len(self.plan)):
                    self.plan = beginning + rest


def _refuse(text: str, left: int) -> None:
    """No calls may begin."""


def _blame(calls: ToolCalls, vocabulary: Vocabulary) -> None:
    """Raises: UsageError: names the tool whose parameters cannot be enforced, if there is such a one."""
    for tool in calls.tools:
        source = LLMatcher.grammar_from_json_schema(tool.schema, overrides=OPTIONS)
        _, messages = LLMatcher.validate_grammar_with_warnings(source, vocabulary.backend)
        if messages:
            raise UsageError(f"The parameters of the tool {tool.name} cannot be enforced: {messages[0][:500]}")


def _hints(wanted: StructuredOutput) -> list[str]:
    """What may end a string of some pattern, the longest first; the shorter ones for states further on in it."""
    texts = [text for text in map(example, wanted.patterns()[:_MOST_PATTERNS]) if text]
    if wanted.is_json:
        texts = [json.dumps(text, ensure_ascii=False)[1:-1] for text in texts]
    ends = {text[place:] for text in texts for place in range(min(len(text), _LONGEST_HINT))}
    return sorted(ends, key=lambda text: (-len(text), text))


def _common(one: bytes, other: bytes) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _source(wanted: StructuredOutput, vocabulary: Vocabulary) -> str:
    calls = wanted.tool_calls
    if calls is not None:
        tag = calls.style.tag
        return LLMatcher.grammar_from_lark(calls.grammar(vocabulary.symbol(tag) if tag else ""))
    if wanted.regex is not None:
        return LLMatcher.grammar_from_regex(wanted.regex)
    if wanted.choice is not None:
        return LLMatcher.grammar_from_regex("|".join(f"({re.escape(text)})" for text in wanted.choice))
    if wanted.grammar is not None:
        return LLMatcher.grammar_from_lark(wanted.grammar)
    schema = wanted.json_schema if wanted.json_schema is not None else {"type": "object"}
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return LLMatcher.grammar_from_json_schema(text, overrides=OPTIONS)
