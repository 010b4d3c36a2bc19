"""POST /v1/responses"""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Response

from ...errors import FaquantError
from ..answer.asked import sampling_fields
from ..answer.output_items import OutputItems
from ..errors import ApiError, as_api_error, errors_renamed
from ..http.limits import StrictRoute
from ..http.streaming import EventStream
from ..schema.response_items import KnownItem, messages_of
from ..schema.response_object import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ResponseError,
    ResponseEvent,
    ResponseObject,
    ResponseUsage,
)
from ..schema.response_request import Reasoning, ResponseRequest
from ..service import Call, CurrentCall
from .prepare import Prepared, prepare
from .stored import conversation_of

router = APIRouter(route_class=StrictRoute)


@router.post(
    "/v1/responses",
    response_model=ResponseObject,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def create_response(body: ResponseRequest, call: CurrentCall) -> Response:
    """Answer a conversation of items, or continue that of a stored response."""
    items = conversation_of(body, call.service.responses)
    messages = messages_of(body.instructions, items)
    if not messages:
        raise ApiError(400, "input has no items.", "input")
    with errors_renamed(body.names):
        prepared = await prepare(call, body, messages, body.max_output_tokens, body.logprobs)
    answer = _Answer(call, body, prepared, items)
    if body.stream:
        keep_alive = call.service.config.sse_keep_alive_interval
        return EventStream(answer.stream(), keep_alive, are_named=True)
    return Response((await answer.complete()).model_dump_json(), media_type="application/json")


class _Answer:
    """Builds the response to one request. items: its conversation."""

    def __init__(self, call: Call, body: ResponseRequest, prepared: Prepared, items: Sequence[KnownItem]) -> None:
        self._call = call
        self._body = body
        self._prepared = prepared
        self._conversation = items
        self._id = f"resp_{uuid.uuid4().hex}"
        self._output = OutputItems()
        self._reply = prepared.reply()

    async def complete(self) -> ResponseObject:
        async with aclosing(self._events()) as events:
            async for _ in events:
                pass
        return self._ended()

    async def stream(self) -> AsyncGenerator[ResponseEvent, None]:
        yield self._output.event("created", response=self._response("in_progress"))
        yield self._output.event("in_progress", response=self._response("in_progress"))
        try:
            async with aclosing(self._events()) as events:
                async for event in events:
                    yield event
        except FaquantError as error:
            said = ResponseError(code="server_error", message=as_api_error(error).body.error.message)
            yield self._output.event("failed", response=self._response("failed", error=said))
            return
        ended = self._ended()
        yield self._output.event(ended.status, response=ended)

    async def _events(self) -> AsyncGenerator[ResponseEvent, None]:
        texts, reply = self._call.service.texts, self._reply
        async with aclosing(self._call.answers(self._prepared.prompts)) as answers:
            async for _, output in answers:
                wanted = self._prepared.params.logprobs is not None
                logprobs = texts.chat(output.token_ids, output.logprobs).content if wanted else []
                for event in self._output.push(reply.push(output), logprobs):
                    yield event
        if reply.has_called:
            self._call.record.calls_tools()
        self._call.record.reasoning_tokens += reply.reasoning_tokens
        for event in self._output.close("incomplete" if reply.finish_reason == "length" else "completed"):
            yield event

    def _ended(self) -> ResponseObject:
        """The finished response, which is stored."""
        is_cut = self._reply.finish_reason == "length"
        ended = self._response(
            "incomplete" if is_cut else "completed",
            completed_at=int(time.time()),
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if is_cut else None,
            usage=self._usage(),
        )
        if self._body.store is not False:
            self._call.service.responses.put(ended, self._conversation)
        return ended

    def _usage(self) -> ResponseUsage:
        usage = self._call.record.usage()
        cached = usage.prompt_tokens_details.cached_tokens
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=cached, cache_write_tokens=0),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(
                reasoning_tokens=usage.completion_tokens_details.reasoning_tokens
            ),
            total_tokens=usage.total_tokens,
        )

    def _response(self, status: str, **fields: Any) -> ResponseObject:
        body, config = self._body, self._call.service.config
        sampling = sampling_fields(body, config.sampling_defaults)
        said = body.model_dump(mode="json", by_alias=True, include={"tools", "tool_choice", "text"})
        reasoning = body.reasoning or Reasoning()
        return ResponseObject.model_validate(
            {
                "id": self._id,
                "object": "response",
                "created_at": self._call.created,
                "completed_at": None,
                "status": status,
                "error": None,
                "incomplete_details": None,
                "model": self._call.service.name,
                "output": list(self._output.items),
                "usage": None,
                "background": False,
                "instructions": body.instructions,
                "max_output_tokens": body.max_output_tokens,
                "max_tool_calls": body.max_tool_calls,
                "metadata": body.metadata or {},
                "parallel_tool_calls": body.parallel_tool_calls,
                "previous_response_id": body.previous_response_id,
                "prompt_cache_key": body.prompt_cache_key,
                "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
                "safety_identifier": body.safety_identifier,
                "service_tier": "default",
                "store": body.store is not False and config.response_store > 0,
                "temperature": sampling["temperature"],
                **said,
                "top_logprobs": body.top_logprobs or 0,
                "top_p": sampling["top_p"],
                "truncation": "disabled",
                "user": body.user,
                **fields,
            }
        )
