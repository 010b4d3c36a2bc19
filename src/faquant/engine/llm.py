"""LLM: a directory that answers."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import index
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..model.load import Model, load
from ..progress import Update, progress_bar
from .engine import Engine
from .engine_config import EngineConfig
from .request import Completion, Request
from .sampling_params import SamplingParams
from .stats import State, Stats
from .tokenizer import Tokenizer

Prompt = str | Sequence[int]
"""Text, or token ids."""


class LLM:
    """A float or quantized model directory, loaded and ready to generate.

    Args:
        directory: with config.json, the weights and tokenizer.json.
        options: the fields of EngineConfig.

    Raises:
        CheckpointError, UnsupportedError: the directory cannot be loaded.
        UsageError: an option makes no sense, or does not fit the model.
    """

    def __init__(self, directory: str | Path, **options: Any) -> None:
        config = EngineConfig(**options)
        path = Path(directory)
        self.model: Model = load(path)
        self.tokenizer = Tokenizer.from_directory(path)
        self.engine = Engine(self.model, self.tokenizer, config)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[Completion]:
        """Answer each prompt, text or token ids; all of them are decoded together.

        Args:
            params: for all prompts, or one for each.
            progress: show a bar on stderr, if that is a terminal.

        Returns:
            The answers in the order of the prompts; params.n of them for each.

        Raises:
            UsageError: a prompt is empty, or with max_tokens longer than the context; nothing was begun then.
            FaquantError: an answer could not be finished.
        """
        if not isinstance(prompts, str) and any(isinstance(prompt, int) for prompt in prompts):
            raise UsageError("generate takes a list of prompts; give one prompt of token ids as [[…]].")
        asked: Sequence[Any] = [prompts] if isinstance(prompts, str) else prompts
        each = params if isinstance(params, Sequence) else [params or SamplingParams()] * len(asked)
        if len(each) != len(asked):
            raise UsageError(f"{len(asked)} prompts take as many params, or one for all, not {len(each)}.")
        ids = [self._encode(prompt) for prompt in asked]
        checked = [self.engine.check(prompt, some) for prompt, some in zip(ids, each, strict=True)]
        with self._requests() as requests:
            for prompt in checked:
                requests += self.engine.admit(prompt)
            with progress_bar("answering", progress) as update:
                self._finish(requests, update)
        return [request.completion() for request in requests]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[str]:
        """Answer one prompt piece by piece, as soon as each piece of text is final. Raises: as generate."""
        params = params or SamplingParams()
        if params.n != 1:
            raise UsageError(f"stream gives one answer, not {params.n}; ask generate for several.")
        with self._requests() as requests:
            requests += self.engine.add(self._encode(prompt), params)
            (request,) = requests
            while True:
                if text := request.new_text():
                    yield text
                if request.finish_reason is not None:
                    break
                self.engine.step()
            if request.error is not None:
                raise request.error

    def chat(self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None) -> Completion:
        """Answer a conversation of `{"role": …, "content": …}` in the model's chat template. Raises: as generate."""
        return self.generate([self.tokenizer.encode_chat(messages)], params)[0]

    def saturation(self) -> dict[str, float]:
        """The share of values of q, k and v beyond their calibrated scales, over all that was answered so far.

        Where it is not next to nothing, the calibration does not fit what is served. Scales per token always fit, and
        so are left out.
        """
        return self.engine.saturation()

    def stats(self) -> Stats:
        """What was done so far."""
        return self.engine.stats()

    def state(self) -> State:
        """What is held now."""
        return self.engine.state()

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        try:
            return [index(item) for item in prompt]  # also numpy's and torch's integers
        except TypeError as error:
            raise UsageError(f"A prompt is text or token ids: {error}.") from None

    @contextmanager
    def _requests(self) -> Iterator[list[Request]]:
        """A list for requests that end with the block, however that ends."""
        requests: list[Request] = []
        try:
            yield requests
        finally:
            for request in requests:
                self.engine.abort(request)

    def _finish(self, requests: Sequence[Request], update: Update) -> None:
        """Run until all of them have ended."""
        mine, done, tokens, begin = set(requests), 0, 0, time.monotonic()
        while done < len(mine) and self.engine.has_work:
            for output in self.engine.step():
                if output.request.error is not None and output.request in mine:
                    raise output.request.error
                done += output.finish_reason is not None and output.request in mine
                tokens += len(output.token_ids)
            update(done, len(mine), f"{tokens / (time.monotonic() - begin):.0f} tokens/s")
