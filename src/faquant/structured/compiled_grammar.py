"""A compiled grammar: llguidance's matcher, and what the search for tokens that complete a text needs."""

import json
import re

from llguidance import LLMatcher

from ..errors import UsageError
from .json_schema import compile_schema
from .structured_output import StructuredOutput
from .tools.calls import ToolCalls
from .tools.xml_parameters import VALUE_END
from .vocabulary import Hints, Vocabulary

# The maximum steps of a search, when a grammar is compiled and for each token.
COMPILING, _GENERATING = 8192, 256
_MAX_PATTERNS, _LONGEST_HINT = 8, 32
_MAX_PLANS, _LONGEST_CACHED = 1024, 256


class CompiledGrammar:
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
        self.shown = frozenset() if calls is None else shown_markers(calls, vocabulary)
        self.repetitions = wanted.repetitions()
        self.hints = _hints(wanted, vocabulary)
        shortest = vocabulary.tokens((wanted.compiled.shortest or "").encode()) if wanted.compiled else []
        if shortest and vocabulary.ends(self.matcher, shortest):
            self.plan: list[int] | None = shortest
        else:
            self.plan = vocabulary.find_plan(self.matcher, self.hints, COMPILING)
        if calls is not None:
            self._plan_each_call(calls, vocabulary)
        read = self.repetitions
        if read and not read.arrays.paths and self.plan == shortest:
            read = None  # it is the text of a value, which has no name twice
        if self.plan and read and read.after(vocabulary.text(self.plan)) is None:
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
                rest = vocabulary.find_plan(state, self.hints, COMPILING // len(calls.tools))
                if rest is not None and (self.plan is None or len(beginning) + len(rest) < len(self.plan)):
                    self.plan = beginning + rest


def shown_markers(calls: ToolCalls, vocabulary: Vocabulary) -> frozenset[int]:
    """The special tokens that are part of the text of calls."""
    return frozenset(token for marker in calls.style.all_markers for token in vocabulary.special(marker))


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
    has_plain_strings = wanted.tool_calls is not None and wanted.tool_calls.style.arguments == "xml"
    if wanted.is_json:
        plain = texts if has_plain_strings else []
        texts = [*plain, *(json.dumps(text, ensure_ascii=False)[1:-1] for text in texts)]
    ends = {text[place:] for text in texts for place in range(min(len(text), _LONGEST_HINT))}
    strings = [vocabulary.tokens(text.encode()) for text in sorted(ends, key=lambda text: (-len(text), text))]
    strings = [*vocabulary.quote, *strings] if wanted.is_json else [*strings, *vocabulary.quote]
    if wanted.tool_calls is None:
        return Hints(strings)
    style = wanted.tool_calls.style
    # The markers that end something come after those that begin it.
    markup = [vocabulary.tokens(marker.encode()) for marker in reversed(style.all_markers)]
    return Hints(strings, markup, [vocabulary.tokens(VALUE_END.encode())] if has_plain_strings else ())


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
