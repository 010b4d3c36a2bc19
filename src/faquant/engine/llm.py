"""LLM: generate text with a model directory."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import islice
from operator import index
from pathlib import Path
from typing import Any, cast

from ..checkpoint.model_config import load_config
from ..errors import UnsupportedError, UsageError
from ..kernels.backend import backend_for
from ..model.load import Model, load
from ..progress import Update, progress_bar
from ..sampling.params import SamplingParams
from ..structured.reasoning import Reasoner, reasoner_of, split_reasoning
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
    """A float or quantized model directory, loaded for generation.

    Args:
        directory: contains config.json, the weights and tokenizer.json.
        options: the fields of EngineConfig.

    Raises:
        CheckpointError, UnsupportedError: the directory cannot be loaded.
        UsageError: an option is invalid or does not fit the model.
    """

    def __init__(self, directory: str | Path, **options: Any) -> None:
        unknown = options.keys() - EngineConfig.__dataclass_fields__
        if unknown:
            raise UsageError(
                f"LLM has no option {min(unknown)}; it takes {', '.join(EngineConfig.__dataclass_fields__)}."
            )
        config = EngineConfig(**options)
        path = Path(directory)
        load_config(path)
        backend = backend_for(config.device)
        self.tokenizer = Tokenizer.from_directory(path)  # before the weights, which take long
        self.model: Model = load(path, backend=backend)
        self.engine = Engine(self.model, self.tokenizer, config)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[Completion]:
        """Answer prompts, each given as text or token ids. All prompts are decoded together.

        Args:
            params: one SamplingParams for all prompts, or one for each.
            progress: show a progress bar on stderr, if that is a terminal.

        Returns:
            The answers in the order of the prompts, params.n for each.

        Raises:
            UsageError: a prompt is empty, or exceeds the context together with max_tokens. No prompt was started.
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
        """Answer one prompt, yielding each piece of text as soon as it is final. Raises: as `generate`."""
        params = params or SamplingParams()
        if params.n != 1:
            raise UsageError(f"stream returns one answer, not {params.n}; use generate for several.")
        with self._requests() as requests:
            requests += self.engine.add(self._encode(prompt), params)
            (request,) = requests
            has_ended = False
            while not has_ended:  # other code may step the engine while the caller handles a piece
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
        """Answer one conversation or several, each a list of `{"role": …, "content": …}`, with the chat template.

        Args:
            params, progress: as for `generate`.
            tools: tools that answers may call, in OpenAI's format: `{"type": "function", "function": {"name": …,
                "parameters": …}}`. Calls always follow the schema. They are in Completion.tool_calls; the text before
                them is in `text`, and the reasoning of models that reason in `reasoning`. An answer without calls has
                the form of params.structured_output, which has no effect if calls are required.
            tool_choice: auto, none, required (at least one call and no text), or the name of the tool to call.
            chat_template_kwargs: additional variables for the template.

        Returns:
            The answers in the order of the conversations, params.n for each.

        Raises:
            UsageError: as `generate`, or the tools are invalid, or tool_choice names none of them.
            UnsupportedError: the model has no chat template, or its tool-call format is unknown.
            FaquantError: an answer could not be finished.
        """
        model, tools = self._conversation, tuple(tools or ())
        calls = _calls(tools, tool_choice, model.format)
        shown = tools if tool_choice != "none" else ()
        several = _conversations(conversations)
        ids = [model.encode(messages, shown, chat_template_kwargs) for messages in several]
        each = _for_each(params, len(ids))
        if self._reasoner is not None:
            thoughts = map(self._reasoner.of_prompt, ids)
            each = [replace(some, reasoning=thought) for some, thought in zip(each, thoughts, strict=True)]
        if calls is not None:
            each = [replace(some, structured_output=_with_form(calls, some.structured_output)) for some in each]
        answers = iter(self.generate(ids, each, progress=progress))
        return [_parts(answer, some) for some in each for answer in islice(answers, some.n)]

    def saturation(self) -> dict[str, float]:
        """The fraction of q, k and v values beyond their calibrated scales, over all requests so far.

        If it is not close to zero, the calibration does not fit the traffic. Scales per token always fit and are not
        counted.
        """
        return self.engine.saturation()

    def stats(self) -> Stats:
        """The counters since the engine was created."""
        return self.engine.stats()

    def state(self) -> State:
        """The sequences and pages that the engine holds now."""
        return self.engine.state()

    @cached_property
    def _conversation(self) -> Conversation:
        return Conversation(self.tokenizer)

    @cached_property
    def _reasoner(self) -> Reasoner | None:
        return reasoner_of(self.tokenizer)

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        try:
            return [index(item) for item in prompt]  # accepts NumPy's and torch's integers
        except TypeError as error:
            raise UsageError(f"A prompt must be text or token ids: {error}.") from None

    @contextmanager
    def _requests(self) -> Iterator[list[Request]]:
        """A list for requests; those in it are aborted when the block ends."""
        requests: list[Request] = []
        try:
            yield requests
        finally:
            for request in requests:
                self.engine.abort(request)

    def _finish(self, requests: Sequence[Request], update: Update) -> None:
        """Step the engine until all requests have finished."""
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
        raise UsageError(f"params must be one SamplingParams, or one for each of the {count} prompts, not {len(each)}.")
    if not all(isinstance(some, SamplingParams) for some in each):
        raise UsageError("params must be a SamplingParams, or a list with one for each prompt.")
    return each


def _conversations(asked: Any) -> Sequence[Messages]:
    def is_list(value: object) -> bool:
        return isinstance(value, Sequence) and not isinstance(value, str)

    def is_message(value: object) -> bool:
        return isinstance(value, Mapping) and isinstance(value.get("role"), str)

    several = [asked] if is_list(asked) and all(map(is_message, asked)) else asked
    if not is_list(several) or not all(is_list(one) and one and all(map(is_message, one)) for one in several):
        raise UsageError('A conversation must be a list of one or more messages: [{"role": "user", "content": …}].')
    return cast(Sequence[Messages], several)


def _calls(tools: Sequence[Mapping[str, Any]], choice: str, format: str | None) -> ToolCalls | None:
    if not tools:
        if choice not in ("auto", "none"):
            raise UsageError("tool_choice requires a call, but no tools are given.", "tool_choice")
        return None
    if format is None:
        raise UnsupportedError("The tool-call format of this model is unknown.")
    try:
        functions = [tool["function"] for tool in tools]
        given = [Tool(function["name"], function.get("parameters")) for function in functions]
    except (AttributeError, KeyError, TypeError):
        wanted = '{"type": "function", "function": {"name": …, "parameters": …}}'
        raise UsageError(f"tools must be a list of {wanted}.", "tools") from None
    calls = ToolCalls(tuple(given), format)
    if choice == "none":
        return replace(calls, tools=())
    if choice in ("auto", "required"):
        return replace(calls, forced=choice == "required")
    return replace(calls.only([choice]), forced=True, parallel=False)


def _with_form(calls: ToolCalls, form: StructuredOutput | None) -> StructuredOutput:
    """Calls, or else an answer of this form, as far as the calls are free."""
    if form is None or calls.forced:
        return StructuredOutput(tool_calls=calls)
    return replace(form, tool_calls=calls) if calls.tools else form


def _parts(answer: Completion, params: SamplingParams) -> Completion:
    """The answer with its reasoning and its calls apart from the text."""
    if params.reasoning is not None:
        reasoning, text = split_reasoning(params.reasoning, answer.text)
        answer = replace(answer, text=text, reasoning=reasoning)
    form = params.structured_output
    if form is None or form.tool_calls is None:
        return answer
    is_formed, is_cut = form.is_either, answer.finish_reason == "length"
    text, found, are_whole = parse(form.tool_calls, answer.text, is_cut, is_formed)
    reason = "tool_calls" if are_whole else answer.finish_reason
    return replace(answer, text=text, tool_calls=found, finish_reason=reason)
