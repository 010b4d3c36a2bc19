"""The service that all endpoints use (engine, tokenizer, limits, metrics), and the current request."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from importlib import metadata
from typing import Annotated, Any

from fastapi import Depends, Request

from ..engine.async_engine import AsyncEngine
from ..engine.engine import CheckedPrompt
from ..engine.request import Output
from ..kernels import isa as cpu
from ..sampling.sampler import SamplingParams
from ..structured.reasoning import reasoner_of
from ..structured.structured_output import StructuredOutput
from ..structured.tools.conversation import Conversation
from ..text.tokenizer import Tokenizer
from .answer.logprobs import TokenTexts
from .answer.stored import ResponseStore
from .config import ServerConfig
from .errors import ApiError, errors_for
from .http.limits import Gate
from .operate.metrics import Metrics
from .operate.record import Record
from .schema.messages import FunctionTool

log = logging.getLogger(__name__)

VERSION = metadata.version("faquant")


class Service:
    """An engine, and the objects that are created once per server."""

    def __init__(self, engine: AsyncEngine, config: ServerConfig) -> None:
        self.engine = engine
        self.config = config
        self.created = int(time.time())
        self.texts = TokenTexts(engine.engine.tokenizer)
        self.conversation = Conversation(engine.engine.tokenizer, config.tool_call_parser)
        self.reasoner = reasoner_of(engine.engine.tokenizer, config.reasoning_parser)
        self.responses = ResponseStore(config.response_store)
        self.gate = Gate(engine.engine.config.max_num_seqs, config.max_queue)
        self.metrics = Metrics(engine.engine, config.served_model_name, VERSION)
        # Answers to the same seed are equal as long as the fingerprint is.
        self.fingerprint = f"faquant-{VERSION}-{cpu.selected_isa()}"
        self._said_unused: set[str] = set()

    @property
    def name(self) -> str:
        return self.config.served_model_name

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.engine.tokenizer

    @property
    def max_model_len(self) -> int:
        return self.engine.engine.max_model_len

    @property
    def ready(self) -> bool:
        return self.engine.alive and not self.gate.closed

    def check_model(self, name: str | None) -> None:
        """Raises: ApiError: this is not the name of the served model."""
        if name is not None and name != self.name:
            message = f"The model {name[:200]!r} does not exist; this server has {self.name!r}."
            raise ApiError(404, message, "model", "model_not_found")

    def context_left(self, prompts: Sequence[Sequence[int]], field: str, least: int = 1) -> int:
        """The number of tokens left for the answer to the longest prompt. Raises: ApiError: fewer than `least`."""
        longest = max(map(len, prompts))
        if longest + least > self.max_model_len:
            limit = self.max_model_len
            # litellm and LangChain recognize this error by OpenAI's words, older and newer ones.
            message = (
                f"Input tokens exceed the configured limit of {limit} tokens: the prompt has {longest}. This model's "
                f"maximum context length is {limit} tokens, for prompt and answer. Shorten the prompt."
            )
            raise ApiError(400, message, field, "context_length_exceeded")
        return self.max_model_len - longest

    def for_template(self, hints: Mapping[str, Any]) -> dict[str, Any]:
        """The hints that the chat template reads. The others have no effect, which is logged once."""
        used = {name: value for name, value in hints.items() if name in self.tokenizer.chat_variables}
        for name in hints.keys() - used.keys() - self._said_unused:
            self._said_unused.add(name)
            log.info("Requests have the field %s, which has no effect on this model", name)
        return used

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        # In a thread, because long texts take a while.
        return await asyncio.to_thread(self.tokenizer.encode, text, add_special_tokens)

    async def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[FunctionTool],
        variables: Mapping[str, Any] | None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of messages that are as chat templates expect them."""
        shown = [tool.for_template() for tool in tools]
        return await asyncio.to_thread(self.conversation.encode, messages, shown, variables, add_generation_prompt)


@dataclass(frozen=True)
class Call:
    """One request to the service."""

    service: Service
    record: Record
    created: int = field(default_factory=lambda: int(time.time()))

    def enter(self, model: str | None, sequences: int) -> None:
        """Admit the request; call this before slow work. Raises: ApiError: wrong model name, or the queue is full."""
        self.service.check_model(model)
        self.service.gate.enter(self.record, sequences)

    async def check(self, prompts: Sequence[Sequence[int]], params: SamplingParams, field: str) -> list[CheckedPrompt]:
        """Check prompts for `answers`. field: the request field of the prompts. Raises: ApiError: they are refused."""
        context_left = self.service.context_left(prompts, field, min(1, params.max_tokens))
        if params.max_tokens > context_left:
            message = (
                f"This model's maximum context length is {self.service.max_model_len} tokens, of which the prompt "
                f"leaves {context_left}, but max_tokens is {params.max_tokens}. Shorten the prompt or lower max_tokens."
            )
            raise ApiError(400, message, "max_tokens", "context_length_exceeded")
        structure = params.structured_output
        if structure is not None and structure.is_either:  # to name the field of the one that is refused
            for part in structure.parts:
                with errors_for(_field_of(part)):
                    await self.service.engine.compile(part)
        with errors_for(field if structure is None else _field_of(structure)):
            return await self.service.engine.check(prompts, params)

    async def answers(self, prompts: Sequence[CheckedPrompt]) -> AsyncGenerator[tuple[int, Output], None]:
        """Yield each output with the index of its choice; the choices are ordered by prompt, then by answer."""
        async with aclosing(self.service.engine.answers(prompts)) as outputs:
            async for place, output in outputs:
                self.record.count(output)
                yield place * prompts[place].params.n + output.request.index, output


def _field_of(structure: StructuredOutput) -> str:
    return "tools" if structure.tool_calls else "response_format"


def _call(request: Request) -> Call:
    return Call(request.app.state.service, request.scope["faquant.record"])


CurrentCall = Annotated[Call, Depends(_call)]
