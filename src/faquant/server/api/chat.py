"""POST /v1/chat/completions"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import APIRouter, Response

from ...engine.engine import CheckedPrompt
from ...engine.request import Output
from ...sampling.sampler import SamplingParams
from ...structured.tools.calls import ToolCalls
from ..answer.asked import sampling_params, tool_calls
from ..answer.reply import Reply
from ..errors import errors_for, errors_renamed
from ..http.limits import StrictRoute
from ..http.streaming import EventStream
from ..schema.requests import ChatRequest
from ..schema.responses import ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprobs, Delta
from ..service import Call, CurrentCall

router = APIRouter(route_class=StrictRoute)


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def create_chat_completion(body: ChatRequest, call: CurrentCall) -> Response:
    """Answer a conversation in the model's chat template."""
    call.enter(body.model, body.n)
    with errors_for("tools"):  # in a thread: schemas may be large
        calls = await asyncio.to_thread(tool_calls, body, call.service.conversation.format)
    shown = (body.tools or []) if body.tool_choice != "none" else []
    prompts = [await call.service.encode_chat(body.messages, shown, body.chat_template_kwargs)]
    max_tokens = body.max_completion_tokens or body.max_tokens or call.service.context_left(prompts, "messages")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    reasoner = call.service.reasoner
    reasoning = None if reasoner is None else reasoner.of_prompt(prompts[0])
    params = await asyncio.to_thread(sampling_params, body, max_tokens, logprobs, calls, reasoning)
    with errors_renamed("max_tokens", "max_completion_tokens" if body.max_completion_tokens else None):
        checked = await call.check(prompts, params, "messages")
    call.record.asks(prompts, body.stream)
    chat = _Chat(call, params, calls)
    if body.stream:
        return EventStream(chat.stream(checked, body.include_usage))
    answer = await chat.complete(checked)
    return Response(answer.model_dump_json(), media_type="application/json")


class _Chat:
    """Builds the answer to one request."""

    def __init__(self, call: Call, params: SamplingParams, calls: ToolCalls | None) -> None:
        self._call = call
        self._params = params
        self._replies = [Reply(calls, params.reasoning) for _ in range(params.n)]
        self._id = f"chatcmpl-{uuid.uuid4().hex}"

    async def complete(self, prompts: Sequence[CheckedPrompt]) -> ChatCompletion:
        service = self._call.service
        outputs: list[list[Output]] = [[] for _ in range(self._params.n)]
        async with aclosing(self._call.answers(prompts)) as answers:
            async for index, output in answers:
                outputs[index].append(output)
                self._push(index, output)
        return ChatCompletion(
            id=self._id,
            created=self._call.created,
            model=service.name,
            system_fingerprint=service.fingerprint,
            choices=[self._choice(index, some) for index, some in enumerate(outputs)],
            usage=self._call.record.usage(),
        )

    async def stream(self, prompts: Sequence[CheckedPrompt], with_usage: bool) -> AsyncGenerator[ChatChunk, None]:
        begun: set[int] = set()
        async with aclosing(self._call.answers(prompts)) as answers:
            async for index, output in answers:
                reply = self._replies[index]
                if index not in begun:
                    begun.add(index)
                    yield self._chunk([_piece(index, reply.first)], with_usage)
                logprobs = self._logprobs([output]) if output.token_ids else None
                deltas = self._push(index, output)
                if not deltas and (logprobs is not None or reply.finish_reason is not None):
                    deltas = [Delta(content="") if logprobs else Delta()]
                for place, delta in enumerate(deltas, start=1):
                    reason = reply.finish_reason if place == len(deltas) else None
                    yield self._chunk([_piece(index, delta, logprobs, reason)], with_usage)
                    logprobs = None
        if with_usage:
            last = self._chunk([], with_usage)
            yield last.model_copy(update={"usage": self._call.record.usage()})

    def _push(self, index: int, output: Output) -> list[Delta]:
        reply = self._replies[index]
        deltas = reply.push(output)
        if reply.finish_reason == "tool_calls":
            self._call.record.calls_tools()
        if reply.finish_reason is not None:
            self._call.record.reasoning_tokens += reply.reasoning_tokens
        return deltas

    def _choice(self, index: int, outputs: Sequence[Output]) -> ChatChoice:
        reply = self._replies[index]
        return ChatChoice.model_validate(
            {
                "index": index,
                "message": reply.message(),
                "logprobs": self._logprobs(outputs),
                "finish_reason": reply.finish_reason,
            }
        )

    def _logprobs(self, outputs: Sequence[Output]) -> ChatLogprobs | None:
        if self._params.logprobs is None:
            return None
        ids = [token for output in outputs for token in output.token_ids]
        return self._call.service.texts.chat(ids, [each for output in outputs for each in output.logprobs])

    def _chunk(self, choices: Sequence[ChatChunkChoice], with_usage: bool) -> ChatChunk:
        service = self._call.service
        chunk = ChatChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._call.created,
            model=service.name,
            system_fingerprint=service.fingerprint,
            choices=list(choices),
        )
        return chunk.model_copy(update={"usage": None}) if with_usage else chunk


def _piece(
    index: int, delta: Delta, logprobs: ChatLogprobs | None = None, finish_reason: str | None = None
) -> ChatChunkChoice:
    return ChatChunkChoice.model_validate(
        {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    )
