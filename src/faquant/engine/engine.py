"""The engine: requests in, one step after the other, tokens out."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, count

import numpy as np

from ..errors import FaquantError, UsageError
from ..kernels.saturation import Saturation
from ..model.load import Model
from ..model.paged import PagedDecoder
from ..model.rope import Rope
from ..sampling.draw import Floats
from ..sampling.params import SamplingParams
from ..sampling.sampler import Sampler, sample_rows
from ..structured.constraint import Constraint
from ..structured.grammar import Grammars
from ..text.tokenizer import Tokenizer
from .engine_config import EngineConfig
from .page_pool import PagePool, page_digest
from .request import Output, Request
from .scheduler import Scheduler, Work
from .speculation import PromptLookup
from .stats import State, Stats

PAGE_SIZE = 128
"""Tokens of a page: one tile of the arithmetic, and what prompts share. Larger pages measured no faster."""
MOST_CACHE_BYTES = 4 << 30
"""Unless kv_cache_memory says otherwise."""


@dataclass(frozen=True)
class Checked:
    """A prompt that can be answered, and what draws each of params.n answers. Made by Engine.check for one use."""

    prompt: Sequence[int]
    params: SamplingParams
    samplers: Sequence[Sampler]


class Engine:
    """Answers many requests at once. Not for several threads at the same time; AsyncEngine is.

    Attributes:
        max_model_len: tokens that a prompt and its answer may have: the model's context, or what the cache holds.
        bytes_per_token: of the cache, in all layers.

    Raises:
        UsageError: the configuration does not fit the model or the memory.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, config: EngineConfig | None = None) -> None:
        config = config or EngineConfig()
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.bytes_per_token = model.cache_bytes_per_token(config.kv_cache_dtype)
        num_pages, self.max_model_len = _fitting(config, model.max_position, PAGE_SIZE * self.bytes_per_token)
        pages = model.make_pages(num_pages, PAGE_SIZE, config.kv_cache_dtype)
        self._saturation = Saturation()
        for layer in pages:
            layer.saturation = self._saturation
        self._decoder = PagedDecoder(model.decoder, pages, model.backend)
        self._rope = Rope(model.config, self.max_model_len)
        self._numbers = count()
        self._stats = Stats()
        self._scheduler = Scheduler(
            PagePool(num_pages),
            PAGE_SIZE,
            config.max_num_seqs,
            config.max_num_batched_tokens,
            config.enable_prefix_caching,
            self._guess,
            self._decoder.copy_page,
        )

    @property
    def has_work(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def check(self, prompt: Sequence[int], params: SamplingParams) -> Checked:
        """What `admit` takes; from any thread. A large structure takes seconds to compile.

        Raises:
            UsageError: the request cannot be answered.
        """
        if not prompt:
            raise UsageError("The prompt has no tokens; give it some text.")
        vocabulary = self.model.config.vocab_size
        if not all(type(item) is int and 0 <= item < vocabulary for item in prompt):
            raise UsageError(f"The prompt has a token id outside the vocabulary of {vocabulary} tokens.")
        length = len(prompt) + params.max_tokens
        if length > self.max_model_len:
            raise UsageError(
                f"The prompt's {len(prompt)} tokens and max_tokens ({params.max_tokens}) together exceed the context "
                f"of {self.max_model_len} tokens. Shorten the prompt or lower max_tokens."
            )
        return Checked(prompt, params, self._samplers(prompt, params))

    def add(self, prompt: Sequence[int], params: SamplingParams) -> list[Request]:
        """Check a prompt of token ids and admit it. Raises: UsageError, as check."""
        return self.admit(self.check(prompt, params))

    def admit(self, checked: Checked) -> list[Request]:
        """Let a prompt wait for its params.n answers, one request each."""
        prompt, params = checked.prompt, checked.params
        rope, root = self._rope, b""
        if self.model.config.rope.rope_type == "dynamic":  # its keys depend on how long the request may become
            original = self.model.config.rope.original_max_position
            length = max(len(prompt) + params.max_tokens, original)  # up to there, all the same
            rope, root = Rope(self.model.config, length), page_digest(b"", [length])
        requests = []
        for sampler in checked.samplers:
            request = Request(next(self._numbers), prompt, self.tokenizer, sampler, rope, root)
            self._scheduler.add(request)
            requests.append(request)
        return requests

    def abort(self, request: Request) -> None:
        """Forget a request and free its pages; nothing if it has ended already."""
        if request.finish_reason is None:
            request.finish("abort")
            self._end(request)

    def abort_running(self) -> list[Request]:
        """Forget all requests that take part in steps, or where there are none, the oldest that waits. Returns them."""
        requests = list(self._scheduler.running) or self._scheduler.waiting[:1]
        for request in requests:
            self.abort(request)
        return requests

    def step(self) -> list[Output]:
        """Run the next tokens of some requests, and say what that brought. Nothing where there is no work."""
        begin = time.perf_counter()
        work = self._scheduler.schedule()
        if not work:
            return []
        model_begin = time.perf_counter()
        logits = self._run(work)
        model_end = time.perf_counter()
        for item in work:
            self._count(item)
            if not item.decodes:
                self._scheduler.computed(item)
        outputs = self._advance([item for item in work if item.decodes], logits)
        self._stats.steps += 1
        self._stats.model_seconds += model_end - model_begin
        self._stats.step_seconds += time.perf_counter() - begin
        return outputs

    def state(self) -> State:
        pool = self._scheduler.pool
        return State(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            used_pages=pool.num_pages - pool.available,
            cached_pages=pool.cached,
            num_pages=pool.num_pages,
            page_size=PAGE_SIZE,
            cache_bytes=pool.num_pages * PAGE_SIZE * self.bytes_per_token,
        )

    def stats(self) -> Stats:
        """A copy."""
        return replace(self._stats, preemptions=self._scheduler.preemptions, finished=dict(self._stats.finished))

    def saturation(self) -> dict[str, float]:
        """The share of values of q, k and v beyond their calibrated scales, over all that was answered so far."""
        return self._saturation.shares()

    def forget_prefixes(self) -> None:
        """Empty the prefix cache."""
        self._scheduler.pool.forget_all()

    def check_integrity(self) -> None:
        """Raises: RuntimeError: the engine's state contradicts itself."""
        self._scheduler.check_integrity()

    @cached_property
    def grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.model.config.vocab_size)

    def _samplers(self, prompt: Sequence[int], params: SamplingParams) -> list[Sampler]:
        constraint = self._constraints(params)
        first = Sampler(
            params,
            prompt,
            vocab_size=self.model.config.vocab_size,
            end_token_ids=self.tokenizer.eos_token_ids,
            constraint=constraint(),
        )
        return [first, *(first.for_answer(index, constraint()) for index in range(1, params.n))]

    def _constraints(self, params: SamplingParams) -> Callable[[], Constraint | None]:
        if params.structured_output is None:
            return lambda: None
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else self.tokenizer.eos_token_ids)}
        return self.grammars.constraints(params.structured_output, params.max_tokens, ends)

    def _run(self, work: Sequence[Work]) -> Floats:
        """Logits [rows, vocab] of each that decodes: of its last token, and of those guessed behind it."""
        hidden = self._decoder.run([item.request.chunk(item.count, item.guessed) for item in work])
        wanted: list[int] = []
        end = 0
        for item in work:
            end += item.count + len(item.guessed)
            if item.decodes:
                wanted += range(end - len(item.guessed) - 1, end)
        return np.asarray(self._decoder.logits(hidden[wanted]) if wanted else hidden)

    def _advance(self, work: Sequence[Work], logits: Floats) -> list[Output]:
        """Draw the next token of each, and where it is the guessed one, those behind it."""
        sizes = [1 + len(item.guessed) for item in work]
        begins = [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
        firsts: list[int] | list[None]
        try:
            some = logits if len(begins) == len(logits) else logits[begins]  # no copy of megabytes for nothing
            firsts = sample_rows(some, [item.request.sampler for item in work])
        except FaquantError:  # of some row; each is told apart below
            firsts = [None] * len(work)
        return [
            self._accept(item, logits[begin : begin + size], first)
            for item, begin, size, first in zip(work, begins, sizes, firsts, strict=True)
        ]

    def _accept(self, item: Work, logits: Floats, first: int | None) -> Output:
        request = item.request
        try:
            tokens = [request.sampler.sample(logits[0]) if first is None else first]
            for guessed, row in zip(item.guessed, logits[1:], strict=True):
                if tokens[-1] != guessed or request.sampler.is_end(guessed) or request.sampler.must_end:
                    break
                try:
                    tokens.append(request.sampler.sample(row))
                except FaquantError:  # what was drawn before may end the answer; if not, the next step says it again
                    break
        except FaquantError as error:
            output = request.fail(error)
        else:
            if not request.first_token and request.index == 0:  # its other answers find what this one has read
                self._stats.prompt_tokens += request.prompt_length
                self._stats.cached_tokens += request.cached_tokens or 0
            output = request.accept(tokens)
            accepted = min(len(tokens) - 1, len(output.token_ids))
            self._scheduler.computed(item, accepted)
            self._stats.accepted_tokens += accepted
            self._stats.generated_tokens += len(output.token_ids)
        if request.finish_reason is not None:
            self._end(request)
        return output

    def _end(self, request: Request) -> None:
        self._scheduler.remove(request)
        reason = request.finish_reason or ""
        self._stats.finished[reason] = self._stats.finished.get(reason, 0) + 1

    def _count(self, item: Work) -> None:
        self._stats.guessed_tokens += len(item.guessed)
        self._stats.prefilled_tokens += max(0, min(item.count, item.request.reached - item.request.computed))

    def _guess(self, request: Request, most: int) -> list[int]:
        most = min(most, self.config.speculative_tokens)
        if not most:
            return []
        if request.lookup is None:
            request.lookup = PromptLookup()
        return request.lookup.guess(request.ids, most)


def _fitting(config: EngineConfig, max_position: int, bytes_per_page: int) -> tuple[int, int]:
    """How many pages kv_cache_memory holds, but no more than can ever be used; and how long a request may become."""
    length = config.length(max_position)
    memory = config.kv_cache_memory
    if memory is None:
        memory = min(MOST_CACHE_BYTES, available_memory() // 2)
    pages = min(memory // bytes_per_page, config.max_num_seqs * -(-length // PAGE_SIZE))
    room = pages * PAGE_SIZE
    if room == 0 or (config.max_model_len is not None and room < length):
        raise UsageError(
            f"The cache of {memory:,} bytes holds {room:,} tokens, fewer than the {max(length, PAGE_SIZE):,} of one "
            f"request, which take {-(-length // PAGE_SIZE) * bytes_per_page:,}. Raise kv_cache_memory or lower "
            "max_model_len."
        )
    return pages, min(length, room)


def available_memory() -> int:
    """Bytes that could be used now without swapping."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # not Linux: all there is
