"""POST /v1/chat/completions"""

import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import APIRouter, Response

from ...engine.engine import CheckedPrompt
from ...engine.request import Output
from ..errors import errors_renamed
from ..http.limits import StrictRoute
from ..http.streaming import EventStream
from ..schema.messages import for_template
from ..schema.requests import ChatRequest
from ..schema.responses import ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprobs, Delta
from ..service import Call, CurrentCall
from .prepare import Prepared, prepare

router = APIRouter(route_class=StrictRoute)


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def create_chat_completion(body: ChatRequest, call: CurrentCall) -> Response:
    """Answer a conversation in the model's chat template."""
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    max_tokens = body.max_completion_tokens or body.max_tokens
    with errors_renamed(body.names):
        prepared = await prepare(call, body, for_template(body.messages), max_tokens, logprobs)
    chat = _Chat(call, prepared, wants_function=bool(body.functions))
    if body.stream:
        keep_alive = call.service.config.sse_keep_alive_interval
        return EventStream(chat.stream(prepared.prompts, body.include_usage), keep_alive)
    answer = await chat.complete(prepared.prompts)
    return Response(answer.model_dump_json(), media_type="application/json")


class _Chat:
    """Builds the answer to one request. wants_function: it asked with `functions`, so a call is a function_call."""

    def __init__(self, call: Call, prepared: Prepared, wants_function: bool) -> None:
        self._call = call
        self._params = prepared.params
        self._replies = [prepared.reply(wants_function) for _ in range(prepared.params.n)]
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
        if reply.has_called:
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
