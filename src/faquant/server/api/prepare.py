"""What an answer to a conversation needs: the prompt, checked, the sampling parameters, and the tools."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...engine.engine import CheckedPrompt
from ...sampling.params import SamplingParams
from ...structured.tools.calls import ToolCalls
from ..answer.asked import sampling_params, tool_calls
from ..answer.reply import Reply
from ..errors import errors_for
from ..schema.requests import Conversing
from ..service import Call


@dataclass(frozen=True)
class Prepared:
    """A checked conversation. calls: the tools that the answer may call; None: plain text."""

    prompts: Sequence[CheckedPrompt]
    params: SamplingParams
    calls: ToolCalls | None

    def reply(self, wants_function: bool = False) -> Reply:
        """A Reply that collects one of the answers. wants_function: as for Reply."""
        structure = self.params.structured_output
        is_formed = structure is not None and structure.is_either
        return Reply(self.calls, self.params.reasoning, is_formed, wants_function)


async def prepare(
    call: Call, body: Conversing, messages: Sequence[Mapping[str, Any]], max_tokens: int | None, logprobs: int | None
) -> Prepared:
    """Admit and check a request for answers to `messages`, which are as chat templates expect them.

    max_tokens: None: what the context leaves. Errors name the fields of chat completions.

    Raises:
        ApiError: the request is refused.
    """
    service = call.service
    call.enter(body.model, body.answers)
    with errors_for("tools"):  # in a thread: schemas may be large
        calls = await asyncio.to_thread(tool_calls, body, service.conversation.format)
    shown = body.offered if body.choice != "none" else []
    variables = {**service.for_template(body.hints), **(body.chat_template_kwargs or {})}
    prompts = [await service.encode_chat(messages, shown, variables)]
    limit = max_tokens or service.context_left(prompts, "messages")
    defaults = service.config.sampling_defaults
    reasoning = None if service.reasoner is None else service.reasoner.of_prompt(prompts[0])
    params = await asyncio.to_thread(sampling_params, body, limit, logprobs, defaults, calls, reasoning)
    checked = await call.check(prompts, params, "messages")
    call.record.asks(prompts, body.stream)
    return Prepared(checked, params, calls)
