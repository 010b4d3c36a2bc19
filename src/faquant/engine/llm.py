"""LLM: a directory that answers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError
from ..kernels.saturation import Saturation
from ..kernels.threads import torch_on_one
from ..model.load import Model, load
from ..model.paged import Chunk, PagedDecoder
from ..model.rope import Rope
from .detokenizer import IncrementalDecoder
from .sampling import Sampler, SamplingParams, log_probabilities
from .stopping import StopChecker
from .tokenizer import Tokenizer

PAGE_SIZE = 128
PREFILL_CHUNK = 1024


@dataclass(frozen=True)
class Completion:
    """One answer. `finish_reason` is `stop` (end token or stop string) or `length` (max_tokens reached).

    `logprobs`, where asked for, has for each token its own log-probability and (id, log-probability) of the likeliest.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[tuple[float, list[tuple[int, float]]], ...] | None = None


class LLM:
    """A float or quantized model directory, loaded and ready to generate.

    Raises:
        CheckpointError, UnsupportedError: the directory cannot be loaded.
    """

    def __init__(self, directory: str | Path) -> None:
        path = Path(directory)
        self.model: Model = load(path)
        self.tokenizer = Tokenizer.from_directory(path)
        self._saturation = Saturation()
        self._is_int8 = self.model.is_int8()

    def generate(
        self, prompts: str | Sequence[str | Sequence[int]], params: SamplingParams | None = None
    ) -> list[Completion]:
        """Answer each prompt, text or token ids; all of them are decoded together.

        Raises:
            UsageError: a prompt is empty, or with max_tokens longer than the context.
        """
        params = params or SamplingParams()
        if not isinstance(prompts, str) and any(isinstance(prompt, int) for prompt in prompts):
            raise UsageError("generate takes a list of prompts; give one prompt of token ids as [[…]].")
        requests = self._requests([prompts] if isinstance(prompts, str) else prompts, params)
        for _ in self._run(requests):
            pass
        return [request.completion() for request in requests]

    def stream(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> Iterator[str]:
        """Answer one prompt piece by piece, as soon as each piece of text is final. Raises: as generate."""
        (request,) = self._requests([prompt], params or SamplingParams())
        for _, text in self._run([request]):
            if text:
                yield text

    def chat(self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None) -> Completion:
        """Answer a conversation of `{"role": …, "content": …}` in the model's chat template. Raises: as generate."""
        return self.generate([self.tokenizer.encode_chat(messages)], params)[0]

    def saturation(self) -> dict[str, float]:
        """The share of values of q, k and v beyond their calibrated scales, over all that was answered so far.

        Where it is not next to nothing, the calibration does not fit what is served. Scales per token always fit, and
        so are left out.
        """
        return self._saturation.shares()

    def _requests(self, prompts: Sequence[str | Sequence[int]], params: SamplingParams) -> list["_Request"]:
        requests = []
        first_page = 0
        for prompt in prompts:
            ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
            self._check(ids, params)
            length = len(ids) + params.max_tokens
            pages = -(-length // PAGE_SIZE)
            table = torch.arange(first_page, first_page + pages)
            first_page += pages
            requests.append(_Request(ids, params, self.tokenizer, table, Rope(self.model.config, length)))
        return requests

    def _check(self, ids: list[int], params: SamplingParams) -> None:
        if not ids:
            raise UsageError("The prompt has no tokens; give it some text.")
        vocabulary = self.model.config.vocab_size
        if not all(type(item) is int and 0 <= item < vocabulary for item in ids):
            raise UsageError(f"The prompt has a token id outside the vocabulary of {vocabulary} tokens.")
        limit = self.model.max_position
        if len(ids) + params.max_tokens > limit:
            raise UsageError(
                f"The prompt's {len(ids)} tokens and max_tokens ({params.max_tokens}) together exceed the context of "
                f"{limit} tokens. Shorten the prompt or lower max_tokens."
            )

    @torch.inference_mode()
    def _run(self, requests: list["_Request"]) -> Iterator[tuple["_Request", str]]:
        pages = self.model.make_pages(sum(len(request.block_table) for request in requests), PAGE_SIZE)
        for layer in pages:
            layer.saturation = self._saturation
        decoder = PagedDecoder(self.model.decoder, pages)
        for request in requests:
            while request.pending > PREFILL_CHUNK:
                with self._threads():
                    self._step(decoder, [request], PREFILL_CHUNK)
            yield from self._advance(decoder, [request])
        while active := [request for request in requests if request.finish_reason is None]:
            yield from self._advance(decoder, active)

    def _advance(self, decoder: PagedDecoder, requests: list["_Request"]) -> list[tuple["_Request", str]]:
        """One more token for each request."""
        with self._threads():
            logits = self._step(decoder, requests)
            return [(request, request.accept(row)) for request, row in zip(requests, logits, strict=True)]

    def _threads(self) -> AbstractContextManager[None]:
        return torch_on_one() if self._is_int8 else nullcontext()

    def _step(self, decoder: PagedDecoder, requests: list["_Request"], limit: int = PREFILL_CHUNK) -> torch.Tensor:
        """Run the next tokens of each request; logits [requests, vocab] of its last one."""
        chunks = [request.next_chunk(limit) for request in requests]
        hidden = decoder.run(chunks)
        last = torch.tensor([len(chunk.tokens) for chunk in chunks]).cumsum(0) - 1
        return decoder.decoder.logits(hidden[last])


class _Request:
    """One sequence on its way."""

    def __init__(
        self, prompt: list[int], params: SamplingParams, tokenizer: Tokenizer, block_table: torch.Tensor, rope: Rope
    ) -> None:
        self.ids = list(prompt)
        self.prompt_length = len(prompt)
        self.cached = 0
        self.params = params
        self.block_table = block_table
        self.rope = rope
        self.finish_reason: str | None = None
        self._tokenizer = tokenizer
        self._sampler = Sampler(params, prompt)
        self._decoder = IncrementalDecoder(tokenizer)
        self._stop = StopChecker(params.stop)
        self._text: list[str] = []
        self._logprobs: list[tuple[float, list[tuple[int, float]]]] = []

    @property
    def pending(self) -> int:
        """Tokens that the cache does not hold yet."""
        return len(self.ids) - self.cached

    def next_chunk(self, limit: int) -> Chunk:
        tokens = torch.tensor(self.ids[self.cached : self.cached + limit])
        chunk = Chunk(tokens, self.cached, self.block_table, self.rope)
        self.cached += len(tokens)
        return chunk

    def accept(self, logits: torch.Tensor) -> str:
        """Choose the next token; the text that became final."""
        token = self._sampler.sample(logits)
        text = ""
        if token in self._tokenizer.eos_token_ids and not self.params.ignore_eos:
            self.finish_reason = "stop"
        else:
            self.ids.append(token)
            if self.params.logprobs is not None:
                self._logprobs.append(log_probabilities(logits, token, self.params.logprobs))
            text = self._stop.push(self._decoder.push(token))
            if self._stop.stopped:
                self.finish_reason = "stop"
            elif len(self.ids) - self.prompt_length >= self.params.max_tokens:
                self.finish_reason = "length"
        if self.finish_reason is not None and not self._stop.stopped:
            text += self._stop.push(self._decoder.flush())
            if not self._stop.stopped:
                text += self._stop.flush()
        self._text.append(text)
        return text

    def completion(self) -> Completion:
        return Completion(
            text="".join(self._text),
            token_ids=tuple(self.ids[self.prompt_length :]),
            prompt_token_ids=tuple(self.ids[: self.prompt_length]),
            finish_reason=self.finish_reason or "length",
            logprobs=None if self.params.logprobs is None else tuple(self._logprobs),
        )
