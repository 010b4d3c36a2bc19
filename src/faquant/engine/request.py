"""One sequence: its tokens, pages and answer."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import FaquantError
from ..model.paged import Chunk
from ..model.rope import Rope
from ..sampling.draw import TokenLogprobs as TokenLogprobs
from ..sampling.sampler import Sampler
from ..structured.constraint import Constraint
from ..structured.reasoning import shown_tokens, split_reasoning
from ..structured.tools.parser import FunctionCall
from ..text.detokenizer import IncrementalDecoder
from ..text.stopping import StopChecker
from ..text.tokenizer import Tokenizer
from .page_pool import page_digest
from .speculation import PromptLookup


@dataclass(frozen=True)
class Completion:
    """One answer.

    `finish_reason` is `stop` (an end token, a stop token or a stop string), `length` (max_tokens was reached, or left
    too few tokens for a tool call), `abort`, or `error`. `stop_reason` is the stop string or token; it is None for the
    model's own end token. `index` numbers the answers of a request with n > 1. `cached_tokens` is the number of prompt
    tokens found in the prefix cache. `logprobs`, if requested, has each token's log-probability and the (id,
    log-probability) pairs of the likeliest tokens; `prompt_logprobs` has them for the prompt's tokens but the first.
    `tool_calls` is filled by LLM.chat if the answer may call tools; `finish_reason` is then `tool_calls`, unless a call
    is cut off. `reasoning` is what LLM.chat has split off the text.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    stop_reason: str | int | None = None
    index: int = 0
    cached_tokens: int = 0
    tool_calls: tuple[FunctionCall, ...] = ()
    reasoning: str = ""


@dataclass(frozen=True)
class Output:
    """The output of one step for a request: the text that became final, the tokens, and their logprobs if requested."""

    request: "Request"
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: str | None


class Request:
    """The tokens of one sequence, the pages that hold them, and its answer.

    Attributes:
        number: position in the order of arrival; also the priority.
        ids: token ids of the prompt and the answer.
        computed: number of tokens whose keys and values are in the pages.
        pages: cache pages, in order; empty while the request waits.
        known_pages: number of pages registered in the prefix cache.
        cached_tokens: number of tokens found in the cache when the request first ran; None before.
        prompt_logprobs: of the tokens of the prompt but the first, as far as computed, if params requests them.
        awaited: digest of the last page that will be in the cache when other prompts have been read.
        reached: number of tokens whose computation counts as prefill: the prompt, or all computed before a preemption.
        error: the reason if finish_reason is `error`.
        is_withheld: whether the answer is returned as a whole, after its text has been checked.
        draws: how often the answer has been drawn, with this one.

    Args:
        new_constraint: creates the constraint of another draw.
    """

    def __init__(
        self,
        number: int,
        prompt: Sequence[int],
        tokenizer: Tokenizer,
        sampler: Sampler,
        rope: Rope,
        root: bytes = b"",
        new_constraint: Callable[[], Constraint | None] = lambda: None,
    ) -> None:
        self.number = number
        self.prompt_length = len(prompt)
        self.params = sampler.params
        self.index = sampler.index
        self.rope = rope
        self.computed = 0
        self.reached = self.prompt_length
        self.pages: list[int] = []
        self.known_pages = 0
        self.cached_tokens: int | None = None
        self.error: FaquantError | None = None
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.awaited: bytes | None = None
        self.arrived, self.first_token, self.finished = time.monotonic(), 0.0, 0.0
        self.draws = 0
        structure = self.params.structured_output
        self.is_withheld = structure is not None and bool(structure.unenforced)
        self._tokenizer = tokenizer
        self._new_constraint = new_constraint
        self._digests: list[bytes] = []
        self._prompt_digest: bytes | None = None
        self._root = root
        self._table = np.empty(0, np.int64)
        self._begin_answer(prompt, sampler)

    def _begin_answer(self, prompt: Sequence[int], sampler: Sampler) -> None:
        self.ids = list(prompt)
        self.sampler = sampler
        self.draws += 1
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.lookup: PromptLookup | None = None
        shown = frozenset() if sampler.constraint is None else sampler.constraint.shown
        if self.params.reasoning is not None:
            shown |= shown_tokens(self._tokenizer)
        self._decoder = IncrementalDecoder(self._tokenizer, shown=shown)
        self._stop = StopChecker(self.params.stop) if self.params.stop else None
        self._text: list[str] = []
        self._returned = 0
        self._logprobs: list[TokenLogprobs] = []

    def draw_again(self) -> None:
        """Begin the answer again, with other random numbers. The request must not hold pages."""
        self._digests = []
        self.reached = self.prompt_length
        self._begin_answer(self.ids[: self.prompt_length], self.sampler.for_another_draw(self._new_constraint()))

    @property
    def pending(self) -> int:
        """The number of tokens not yet in the pages; 1 if the next token can be decoded."""
        return len(self.ids) - self.computed

    @property
    def answer_ids(self) -> list[int]:
        return self.ids[self.prompt_length :]

    @property
    def remaining_tokens(self) -> int:
        """The number of tokens that the answer may still get."""
        return self.params.max_tokens - (len(self.ids) - self.prompt_length)

    @property
    def must_compute_all(self) -> bool:
        """Whether its tokens must be computed even if their keys and values are in the prefix cache."""
        return self.params.prompt_logprobs is not None and len(self.prompt_logprobs) < self.prompt_length - 1

    def digests(self, page_size: int, count: int) -> list[bytes]:
        """The digests of the first `count` pages, which are full."""
        while len(self._digests) < count:
            begin = len(self._digests) * page_size
            before = self._digests[-1] if self._digests else self._root
            self._digests.append(page_digest(before, self.ids[begin : begin + page_size]))
        return self._digests[:count]

    def prompt_digest(self, page_size: int) -> bytes | None:
        """The digest of the prompt except for its last token, which always runs; None if only full pages remain."""
        if self._prompt_digest is None and (rest := (self.prompt_length - 1) % page_size):
            full = self.digests(page_size, (self.prompt_length - 1) // page_size)
            begin = self.prompt_length - 1 - rest
            self._prompt_digest = page_digest(full[-1] if full else self._root, self.ids[begin : begin + rest])
        return self._prompt_digest

    def chunk(self, count: int, draft: Sequence[int] = ()) -> Chunk:
        """The next `count` tokens, followed by the draft tokens."""
        if len(self._table) != len(self.pages):
            self._table = np.array(self.pages, np.int64)
        tokens = np.array([*self.ids[self.computed : self.computed + count], *draft], np.int64)
        return Chunk(tokens, self.computed, self._table, self.rope)

    def hold(self, pages: list[int], known: int, computed: int) -> None:
        """Start running in `pages`, which contain `computed` tokens; the first `known` are from the prefix cache."""
        self.pages, self.known_pages, self.computed, self.awaited = pages, known, computed, None
        if self.cached_tokens is None:
            self.cached_tokens = self.computed

    def release(self) -> list[int]:
        """Stop running; return the pages to free."""
        pages = self.pages
        self.reached = max(self.reached, self.computed)
        self.pages, self.known_pages, self.computed = [], 0, 0
        self._table = np.empty(0, np.int64)
        return pages

    def accept(self, tokens: Sequence[int]) -> Output:
        """Append the newly sampled tokens to the answer, up to the token that ends it."""
        if not self.first_token:
            self.first_token = time.monotonic()
        texts: list[str] = []
        accepted: list[int] = []
        logprobs: list[TokenLogprobs] = []
        if self.remaining_tokens == 0:  # max_tokens is 0
            self.finish("length")
            tokens = ()
        for place, token in enumerate(tokens):
            if self.sampler.is_end(token):
                self.finish("stop", token if token in self.params.stop_token_ids else None)
                break
            if place == len(tokens) - 1 and (self.sampler.is_cut or self.sampler.is_past_end):
                self.finish("length" if self.sampler.is_cut else "stop")
                break
            self.ids.append(token)
            accepted.append(token)
            if self.params.logprobs is not None:
                logprobs.append(self.sampler.logprobs[place - len(tokens)])
            text = self._decoder.push(token)
            texts.append(self._before_stop(text))
            if self._stop is not None and self._stop.stopped:
                self.finish("stop", self._stop.matched)
            elif self.sampler.must_end and place == len(tokens) - 1:
                self.finish("stop")
            elif self.remaining_tokens == 0:
                self.finish("length")
            if self.finish_reason is not None:
                break
        if self.finish_reason is not None and (self._stop is None or not self._stop.stopped):
            texts.append(self._before_stop(self._decoder.flush()))
            if self._stop is not None and self._stop.stopped:
                self.finish("stop", self._stop.matched)
            elif self._stop is not None:
                texts.append(self._stop.flush())
        text = "".join(texts)
        self._text.append(text)
        self._logprobs += logprobs
        return Output(self, text, tuple(accepted), tuple(logprobs), self.finish_reason)

    def _before_stop(self, text: str) -> str:
        """The part of the text, and of text held back before, that no stop string can remove any more."""
        if self._stop is None:
            return text
        # Stop strings do not apply within a tool call, which they would break.
        return self._stop.push(text) if self._is_watched else self._stop.flush() + text

    @property
    def _is_watched(self) -> bool:
        """Whether stop strings apply to the answer's last token."""
        constraint = self.sampler.constraint
        begin = None if constraint is None else constraint.unwatched_from
        return begin is None or len(self.ids) - self.prompt_length <= begin

    def finish(self, reason: str, stop_reason: str | int | None = None) -> None:
        self.finish_reason, self.stop_reason, self.finished = reason, stop_reason, time.monotonic()
        self.lookup = None

    def fail(self, error: FaquantError) -> Output:
        """Finish with an error."""
        self.error = error
        self.finish("error")
        return Output(self, "", (), (), self.finish_reason)

    def problem(self) -> str | None:
        """Why the complete answer does not have the required form; None if it has, or a stop string has cut it."""
        structure = self.params.structured_output
        if structure is None or isinstance(self.stop_reason, str):
            return None
        text, reasoning = "".join(self._text), self.params.reasoning
        return structure.problem(text if reasoning is None else split_reasoning(reasoning, text)[1])

    def whole(self) -> Output:
        """All outputs of the finished answer in one."""
        logprobs = tuple(self._logprobs)
        return Output(self, "".join(self._text), tuple(self.answer_ids), logprobs, self.finish_reason)

    def new_text(self) -> str:
        """The text that became final since the last call."""
        if self.is_withheld and self.finish_reason in (None, "error"):
            return ""
        returned, self._returned = self._returned, len(self._text)
        return "".join(self._text[returned:])

    def completion(self) -> Completion:
        return Completion(
            text="".join(self._text),
            token_ids=tuple(self.answer_ids),
            prompt_token_ids=tuple(self.ids[: self.prompt_length]),
            finish_reason=self.finish_reason or "abort",
            logprobs=None if self.params.logprobs is None else tuple(self._logprobs),
            prompt_logprobs=None if self.params.prompt_logprobs is None else tuple(self.prompt_logprobs),
            stop_reason=self.stop_reason,
            index=self.index,
            cached_tokens=self.cached_tokens or 0,
        )
