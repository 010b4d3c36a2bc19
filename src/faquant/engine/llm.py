"""LLM: a directory that answers."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import index
from pathlib import Path
from typing import Any, cast

from ..errors import UnsupportedError, UsageError
from ..model.load import Model, load
from ..progress import Update, progress_bar
from ..sampling.params import SamplingParams
from ..structured.structured_output import StructuredOutput
from ..structured.tools.calls import Tool, ToolCalls
from ..structured.tools.conversation import Conversation
from ..structured.tools.parser import parse
from ..text.tokenizer import Tokenizer
from .engine import Engine
from .engine_config import EngineConfig
from .request import Completion, Request
from .stats import State, Stats

Prompt = str | Sequence[int]
"""Text, or token ids."""
Messages = Sequence[Mapping[str, Any]]
"""A conversation."""


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
        unknown = options.keys() - EngineConfig.__dataclass_fields__
        if unknown:
            raise UsageError(
                f"LLM has no option {min(unknown)}; it takes {', '.join(EngineConfig.__dataclass_fields__)}."
            )
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
        asked: Any = [prompts] if isinstance(prompts, str) else prompts
        if not isinstance(asked, Sequence) or any(isinstance(prompt, int) for prompt in asked):
            raise UsageError("generate takes a list of prompts; give one prompt of token ids as [[…]].")
        each = _for_each(params, len(asked))
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
            has_ended = False
            while not has_ended:  # others may step the engine, while whoever reads this has the last piece
                has_ended = request.finish_reason is not None
                if text := request.new_text():
                    yield text
                if request.finish_reason is None:
                    self.engine.step()
            if request.error is not None:
                raise request.error

    def chat(
        self,
        conversations: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> list[Completion]:
        """Answer one conversation or several, each a list of `{"role": …, "content": …}`, in the model's chat template.

        Args:
            params, progress: as generate.
            tools: what answers may call, as OpenAI's API has them: `{"type": "function", "function": {"name": …,
                "parameters": …}}`. Calls always follow the schema; Completion.tool_calls has them, and `text` what
                stands before them.
            tool_choice: auto, none, required (at least one call and no text), or the name of the tool to call.
            chat_template_kwargs: more variables for the template.

        Returns:
            The answers in the order of the conversations; params.n of them for each.

        Raises:
            UsageError: also where the tools are none, or tool_choice names none of them.
            UnsupportedError: there is no chat template, or the format of the model's calls is not known.
            FaquantError: an answer could not be finished.
        """
        model, tools = Conversation(self.tokenizer), tuple(tools or ())
        calls = _calls(tools, tool_choice, model.format)
        shown = tools if tool_choice != "none" else ()
        several = _conversations(conversations)
        ids = [model.encode(messages, shown, chat_template_kwargs) for messages in several]
        if calls is None:
            return self.generate(ids, params, progress=progress)
        each = _for_each(params, len(ids))
        if any(some.structured_output is not None for some in each):
            raise UsageError("Tools and a structured_output exclude each other.")
        wanted = [replace(some, structured_output=StructuredOutput(tool_calls=calls)) for some in each]
        return [_with_calls(answer, calls) for answer in self.generate(ids, wanted, progress=progress)]

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


def _for_each(params: Any, count: int) -> Sequence[SamplingParams]:
    each = params if isinstance(params, Sequence) else [params or SamplingParams()] * count
    if len(each) != count:
        raise UsageError(f"{count} prompts take as many params, or one for all, not {len(each)}.")
    if not all(isinstance(some, SamplingParams) for some in each):
        raise UsageError("params is a SamplingParams, or a list with one for each prompt.")
    return each


def _conversations(asked: Any) -> Sequence[Messages]:
    def is_list(value: object) -> bool:
        return isinstance(value, Sequence) and not isinstance(value, str)

    def is_message(value: object) -> bool:
        return isinstance(value, Mapping) and isinstance(value.get("role"), str)

    several = [asked] if is_list(asked) and all(map(is_message, asked)) else asked
    if not is_list(several) or not all(is_list(one) and one and all(map(is_message, one)) for one in several):
        raise UsageError('A conversation is a list of messages, at least one: [{"role": "user", "content": …}].')
    return cast(Sequence[Messages], several)


def _calls(tools: Sequence[Mapping[str, Any]], choice: str, format: str | None) -> ToolCalls | None:
    if not tools:
        if choice not in ("auto", "none"):
            raise UsageError("tool_choice wants a call, but there are no tools.", "tool_choice")
        return None
    if format is None:
        raise UnsupportedError("The format in which this model calls tools is not known.")
    try:
        functions = [tool["function"] for tool in tools]
        given = [Tool(function["name"], function.get("parameters")) for function in functions]
    except (AttributeError, KeyError, TypeError):
        wanted = '{"type": "function", "function": {"name": …, "parameters": …}}'
        raise UsageError(f"tools is a list of {wanted}.", "tools") from None
    calls = ToolCalls(tuple(given), format)
    if choice == "none":
        return replace(calls, tools=())
    if choice in ("auto", "required"):
        return replace(calls, forced=choice == "required")
    return replace(calls.only([choice]), forced=True, parallel=False)


def _with_calls(answer: Completion, calls: ToolCalls) -> Completion:
    text, found, are_whole = parse(calls, answer.text, answer.finish_reason == "length")
    reason = "tool_calls" if are_whole else answer.finish_reason
    return replace(answer, text=text, tool_calls=found, finish_reason=reason)
