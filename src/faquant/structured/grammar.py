"""Structured output: compiles grammars, and creates the constraints of answers."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import partial

from ..errors import UsageError
from ..text.tokenizer import Tokenizer
from .compiled_grammar import CompiledGrammar, shown_markers
from .constraint import Constraint
from .either import EitherConstraint
from .grammar_constraint import GrammarConstraint
from .reasoning import BEGIN, END, Reasoning, ReasoningConstraint, end_plan
from .structured_output import StructuredOutput as StructuredOutput
from .tools.constraint import CallConstraint
from .tools.parser import opening_of
from .vocabulary import Vocabulary


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
        self._compiled: OrderedDict[StructuredOutput, Future[CompiledGrammar]] = OrderedDict()
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
        shown = shown_markers(calls, self._vocabulary)
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
    ) -> Callable[[], GrammarConstraint]:
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
        self, compiled: CompiledGrammar, end_token_ids: Collection[int], text: str, left: int
    ) -> GrammarConstraint | None:
        """The constraint for calls that begin with `text`; None if `text` is invalid or `left` tokens are too few."""
        constraint = GrammarConstraint(self._vocabulary, compiled, end_token_ids)
        return constraint if constraint.start_after(text.encode("latin-1"), left) else None

    def compiled(
        self, wanted: StructuredOutput, submit: Callable[..., object] | None = None
    ) -> Future[CompiledGrammar]:
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

    def _compile(self, wanted: StructuredOutput, compiled: Future[CompiledGrammar]) -> None:
        if not compiled.set_running_or_notify_cancel():
            self._forget(wanted, compiled)
            return
        try:
            result = CompiledGrammar(self._vocabulary, wanted)
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

    def _forget(self, wanted: StructuredOutput, compiled: Future[CompiledGrammar]) -> None:
        with self._lock:
            if self._compiled.get(wanted) is compiled:
                del self._compiled[wanted]


def _refuse(text: str, left: int) -> None:
    """Refuse all calls."""
