"""What every endpoint works with: the engine, the model's name and texts, the limits, and the request at hand."""

import asyncio
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
from ..structured.tools.conversation import Conversation
from ..text.tokenizer import Tokenizer
from .answer.logprobs import TokenTexts
from .config import ServerConfig
from .errors import ApiError, blamed_on
from .http.limits import Gate
from .operate.metrics import Metrics
from .operate.record import Record
from .schema.messages import FunctionTool, Message

VERSION = metadata.version("faquant")


class Service:
    """One engine and all that is made once beside it."""

    def __init__(self, engine: AsyncEngine, config: ServerConfig) -> None:
        self.engine = engine
        self.config = config
        self.created = int(time.time())
        self.texts = TokenTexts(engine.engine.tokenizer)
        self.conversation = Conversation(engine.engine.tokenizer, config.tool_call_parser)
        self.gate = Gate(engine.engine.config.max_num_seqs, config.max_queue)
        self.metrics = Metrics(engine.engine, config.served_model_name, VERSION)
        # With one seed the answer is the same as long as this is.
        self.fingerprint = f"faquant-{VERSION}-{cpu.selected_isa()}"

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
        """Raises: ApiError: this is not the model that is served."""
        if name is not None and name != self.name:
            message = f"The model {name[:200]!r} does not exist here; this server has {self.name!r}."
            raise ApiError(404, message, "model", "model_not_found")

    def context_left(self, prompts: Sequence[Sequence[int]], field: str) -> int:
        """Tokens that the answer to the longest prompt may have. Raises: ApiError: none."""
        longest = max(map(len, prompts))
        if longest >= self.max_model_len:
            message = f"The prompt has {longest} tokens, and the context holds {self.max_model_len} with the answer."
            raise ApiError(400, message, field, "context_length_exceeded")
        return self.max_model_len - longest

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        # In a thread: a long text takes a while, and answers go on meanwhile.
        return await asyncio.to_thread(self.tokenizer.encode, text, add_special_tokens)

    async def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[FunctionTool],
        variables: Mapping[str, Any] | None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        plain = [message.for_template() for message in messages]
        shown = [tool.for_template() for tool in tools]
        return await asyncio.to_thread(self.conversation.encode, plain, shown, variables, add_generation_prompt)


@dataclass(frozen=True)
class Call:
    """One request to the service."""

    service: Service
    record: Record
    created: int = field(default_factory=lambda: int(time.time()))

    def enter(self, model: str | None, sequences: int) -> None:
        """Before anything that takes time. Raises: ApiError: another model is meant, or there is no room."""
        self.service.check_model(model)
        self.service.gate.enter(self.record, sequences)

    async def check(self, prompts: Sequence[Sequence[int]], params: SamplingParams, field: str) -> list[CheckedPrompt]:
        """What `answers` takes. field: that of the prompts. Raises: ApiError: the engine refuses them."""
        room = self.service.context_left(prompts, field)
        if params.max_tokens > room:
            message = (
                f"max_tokens is {params.max_tokens}, and the context of {self.service.max_model_len} tokens leaves "
                f"{room} beside the prompt. Shorten the prompt or lower max_tokens."
            )
            raise ApiError(400, message, "max_tokens", "context_length_exceeded")
        structure = params.structured_output
        with blamed_on(field if structure is None else "tools" if structure.tool_calls else "response_format"):
            return await self.service.engine.check(prompts, params)

    async def answers(self, prompts: Sequence[CheckedPrompt]) -> AsyncGenerator[tuple[int, Output], None]:
        """What each step brings, with the number of the choice: the answers to the first prompt come first."""
        async with aclosing(self.service.engine.answers(prompts)) as outputs:
            async for place, output in outputs:
                self.record.count(output)
                yield place * prompts[place].params.n + output.request.index, output


def _call(request: Request) -> Call:
    return Call(request.app.state.service, request.scope["faquant.record"])


CurrentCall = Annotated[Call, Depends(_call)]
