"""The engine: takes requests and produces their tokens step by step."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, count

from ..errors import AnswerError, FaquantError, UsageError
from ..kernels.arrays import Array
from ..kernels.saturation import Saturation
from ..model.load import Model
from ..model.paged import PagedDecoder
from ..model.rope import Rope
from ..sampling.params import SamplingParams
from ..sampling.sampler import Sampler, sample_rows
from ..structured.constraint import Constraint
from ..structured.grammar import Grammars
from ..text.tokenizer import Tokenizer
from .engine_config import EngineConfig
from .page_pool import PagePool, page_digest
from .prompt_scores import score_prompt
from .request import Output, Request
from .scheduler import Scheduler, Work
from .speculation import PromptLookup
from .stats import State, Stats

PAGE_SIZE = 128
"""Tokens per page: one tile of the attention kernels, and the unit of prefix sharing. Larger pages were not faster."""
MAX_DRAWS = 4
"""How often an answer is drawn whose form the grammar cannot ensure, until it has this form."""


@dataclass(frozen=True)
class CheckedPrompt:
    """A prompt that the engine can answer, with a sampler for each of its params.n answers.

    Engine.check creates it; it can be admitted once. `new_constraint` creates the constraint of another draw.
    """

    prompt: Sequence[int]
    params: SamplingParams
    samplers: Sequence[Sampler]
    new_constraint: Callable[[], Constraint | None]


class Engine:
    """Answers many requests at once. Not thread-safe; use AsyncEngine from several threads.

    Attributes:
        max_model_len: maximum tokens of a prompt and its answer: the model's context, or less if the cache is smaller.
        bytes_per_token: cache bytes per token, over all layers.

    Raises:
        UsageError: the configuration does not fit the model or the memory.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, config: EngineConfig | None = None) -> None:
        config = config or EngineConfig()
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.bytes_per_token = model.cache_bytes_per_token(config.kv_cache_dtype)
        length = config.length(model.max_position, model.config.context_note)
        num_pages, self.max_model_len = _cache_limits(
            config, length, PAGE_SIZE * self.bytes_per_token, model.backend.cache_memory()
        )
        pages = model.make_pages(num_pages, PAGE_SIZE, config.kv_cache_dtype)
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
            self._propose,
            self._decoder.copy_page,
        )

    @property
    def has_work(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def check(self, prompt: Sequence[int], params: SamplingParams) -> CheckedPrompt:
        """Check a prompt for `admit`. Thread-safe. Compiling a large structure takes seconds.

        Raises:
            UsageError: the request cannot be answered.
        """
        if not prompt:
            raise UsageError("The prompt has no tokens; it must not be empty.")
        vocabulary = self.model.config.vocab_size
        if not all(type(item) is int and 0 <= item < vocabulary for item in prompt):
            raise UsageError(f"The prompt has a token id outside the vocabulary of {vocabulary} tokens.")
        length = len(prompt) + params.max_tokens
        if length > self.max_model_len:
            note = self.model.config.context_note
            raise UsageError(
                f"The prompt's {len(prompt)} tokens and max_tokens ({params.max_tokens}) together exceed the context "
                f"of {self.max_model_len} tokens{f' ({note})' if note else ''}. Shorten the prompt or lower max_tokens."
            )
        new_constraint = self._constraint_factory(params)
        return CheckedPrompt(prompt, params, self._samplers(prompt, params, new_constraint), new_constraint)

    def add(self, prompt: Sequence[int], params: SamplingParams) -> list[Request]:
        """Check a prompt of token ids and admit it. Raises: UsageError: as `check`."""
        return self.admit(self.check(prompt, params))

    def admit(self, checked: CheckedPrompt) -> list[Request]:
        """Queue a checked prompt; return one request for each of its params.n answers."""
        prompt, params = checked.prompt, checked.params
        rope, root = self._rope, b""
        length = self.model.config.rope.length_used(len(prompt) + params.max_tokens)
        if length is not None:  # only requests with the same frequencies share keys
            rope, root = Rope(self.model.config, length), page_digest(b"", [length])
        requests = []
        for sampler in checked.samplers:
            request = Request(next(self._numbers), prompt, self.tokenizer, sampler, rope, root, checked.new_constraint)
            self._scheduler.add(request)
            requests.append(request)
        return requests

    def abort(self, request: Request) -> None:
        """Abort a request and free its pages. Does nothing if the request has already finished."""
        if request.finish_reason is None:
            request.finish("abort")
            self._end(request)

    def abort_running(self) -> list[Request]:
        """Abort and return all running requests; if none is running, the oldest waiting one."""
        requests = list(self._scheduler.running) or self._scheduler.waiting[:1]
        for request in requests:
            self.abort(request)
        return requests

    def step(self) -> list[Output]:
        """Run the next tokens of some requests and return their outputs: an empty list if no request is left.

        Raises:
            FaquantError: the device has too little memory. DeviceError: it failed.
        """
        begin = time.perf_counter()
        work = self._scheduler.schedule()
        if not work:
            return []
        model_begin = time.perf_counter()
        try:
            logits = self._run(work)
            model_end = time.perf_counter()
            for item in work:
                self._count(item)
                if not item.decodes:
                    self._scheduler.computed(item)
            # A GPU reports the failures of what was launched when its results are read.
            outputs = self._advance([item for item in work if item.decodes], logits)
        except Exception as error:
            if told := self.model.backend.explain(error):
                raise told from error
            raise
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
        """A copy of the counters."""
        return replace(self._stats, preemptions=self._scheduler.preemptions, finished=dict(self._stats.finished))

    def saturation(self) -> dict[str, float]:
        """The fraction of q, k and v values beyond their calibrated scales, over all requests so far."""
        total = Saturation()
        for pages in self._decoder.pages:
            total.add(pages.saturation)
        return total.shares()

    def forget_prefixes(self) -> None:
        """Empty the prefix cache."""
        self._scheduler.pool.forget_all()

    def check_integrity(self) -> None:
        """Raises: RuntimeError: the engine's state contradicts itself."""
        self._scheduler.check_integrity()

    @cached_property
    def grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.model.config.vocab_size)

    def _samplers(
        self, prompt: Sequence[int], params: SamplingParams, new_constraint: Callable[[], Constraint | None]
    ) -> list[Sampler]:
        first = Sampler(
            params,
            prompt,
            vocab_size=self.model.config.vocab_size,
            end_token_ids=self.tokenizer.eos_token_ids,
            constraint=new_constraint(),
        )
        return [first, *(first.for_answer(index, new_constraint()) for index in range(1, params.n))]

    def _constraint_factory(self, params: SamplingParams) -> Callable[[], Constraint | None]:
        if params.structured_output is None:
            return lambda: None
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else self.tokenizer.eos_token_ids)}
        return self.grammars.constraints(params.structured_output, params.max_tokens, ends, params.reasoning)

    def _run(self, work: Sequence[Work]) -> Array:
        """Logits [rows, vocab] for each sequence that decodes: of its last token and of its draft tokens."""
        hidden = self._decoder.run([item.request.chunk(item.count, item.draft) for item in work])
        wanted: list[int] = []
        end = 0
        for item in work:
            if item.request.must_compute_all:
                score_prompt(item.request, hidden[end : end + item.count], self._decoder.logits)
            end += item.count + len(item.draft)
            if item.decodes:
                wanted += range(end - len(item.draft) - 1, end)
        return self._decoder.logits(hidden[wanted]) if wanted else hidden[:0]

    def _advance(self, work: Sequence[Work], logits: Array) -> list[Output]:
        """Sample the next token of each sequence, and more tokens as long as its draft tokens are accepted."""
        sizes = [1 + len(item.draft) for item in work]
        begins = [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
        firsts: list[int] | list[None]
        try:
            some = logits if len(begins) == len(logits) else logits[begins]  # avoid copying megabytes
            firsts = sample_rows(some, [item.request.sampler for item in work])
        except FaquantError:  # some row is invalid; _accept samples each row on its own
            firsts = [None] * len(work)
        return [
            self._accept(item, logits[begin : begin + size], first)
            for item, begin, size, first in zip(work, begins, sizes, firsts, strict=True)
        ]

    def _accept(self, item: Work, logits: Array, first: int | None) -> Output:
        request = item.request
        try:
            tokens = [request.sampler.sample(logits[0]) if first is None else first]
            for draft, row in zip(item.draft, logits[1:], strict=True):
                if tokens[-1] != draft or request.sampler.is_end(draft) or request.sampler.must_end:
                    break
                try:
                    tokens.append(request.sampler.sample(row))
                except FaquantError:  # earlier tokens may end the answer; otherwise, the next step raises it again
                    break
        except FaquantError as error:
            output = request.fail(error)
        else:
            if not request.first_token and request.index == 0:  # the other answers reuse this one's pages
                self._stats.prompt_tokens += request.prompt_length
                self._stats.cached_tokens += request.cached_tokens or 0
            output = request.accept(tokens)
            accepted = min(len(tokens) - 1, len(output.token_ids))
            self._scheduler.computed(item, accepted)
            self._stats.accepted_tokens += accepted
            if request.is_withheld:
                output = self._withhold(request)
            self._stats.generated_tokens += len(output.token_ids)
        if request.finish_reason is not None:
            self._end(request)
        return output

    def _withhold(self, request: Request) -> Output:
        """The whole answer if it is finished and has the required form, and no text before. Another answer is drawn
        again, or the request fails."""
        nothing = Output(request, "", (), (), None)
        if request.finish_reason is None:
            return nothing
        problem = request.problem()
        if problem is None:
            return request.whole()
        self._stats.invalid_answers += 1
        if request.draws == MAX_DRAWS:
            message = f"None of {MAX_DRAWS} answers has the required form. The last one: {problem}"
            return request.fail(AnswerError(message))
        self._stats.discarded_tokens += len(request.answer_ids)
        self._scheduler.requeue(request)
        request.draw_again()
        return nothing

    def _end(self, request: Request) -> None:
        self._scheduler.remove(request)
        reason = request.finish_reason or ""
        if request.is_withheld and reason in ("abort", "error"):
            self._stats.discarded_tokens += len(request.answer_ids)
        self._stats.finished[reason] = self._stats.finished.get(reason, 0) + 1

    def _count(self, item: Work) -> None:
        self._stats.draft_tokens += len(item.draft)
        self._stats.prefilled_tokens += max(0, min(item.count, item.request.reached - item.request.computed))

    def _propose(self, request: Request, count: int) -> list[int]:
        count = min(count, self.config.speculative_tokens)
        if not count:
            return []
        if request.lookup is None:
            request.lookup = PromptLookup()
        return request.lookup.propose(request.ids, count)


def _cache_limits(config: EngineConfig, length: int, bytes_per_page: int, default_memory: int) -> tuple[int, int]:
    """The number of pages that fit into kv_cache_memory, at most as many as requests of `length` tokens can use; and
    the maximum length with them."""
    memory = config.kv_cache_memory if config.kv_cache_memory is not None else default_memory
    pages = min(memory // bytes_per_page, config.max_num_seqs * -(-length // PAGE_SIZE))
    capacity = pages * PAGE_SIZE
    if capacity == 0 or (config.max_model_len is not None and capacity < length):
        raise UsageError(
            f"The cache of {memory:,} bytes holds {capacity:,} tokens, but one request may have "
            f"{max(length, PAGE_SIZE):,}, which need {-(-length // PAGE_SIZE) * bytes_per_page:,} bytes. Raise "
            "kv_cache_memory or lower max_model_len."
        )
    return pages, min(length, capacity)
