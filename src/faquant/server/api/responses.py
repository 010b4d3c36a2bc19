"""/v1/responses"""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Response

from ...errors import FaquantError
from ..answer.output_items import OutputItems
from ..answer.stored import ResponseStore
from ..config import MAX_TEXT
from ..errors import ApiError, as_api_error, errors_renamed
from ..http.limits import StrictRoute
from ..http.streaming import EventStream
from ..schema.response_items import KnownItem, MessageItem, ReferenceItem, messages_of
from ..schema.response_object import (
    DeletedResponse,
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ResponseError,
    ResponseEvent,
    ResponseObject,
    ResponseUsage,
)
from ..schema.response_request import ResponseRequest
from ..service import Call, CurrentCall
from .prepare import Prepared, prepare

router = APIRouter(route_class=StrictRoute)


@router.post(
    "/v1/responses",
    response_model=ResponseObject,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def create_response(body: ResponseRequest, call: CurrentCall) -> Response:
    """Answer a conversation of items, or continue that of a stored response."""
    items = _conversation(body, call.service.responses)
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


@router.get("/v1/responses/{response_id}")
async def get_response(response_id: str, call: CurrentCall) -> ResponseObject:
    """A stored response."""
    stored = call.service.responses.get(response_id)
    if stored is None:
        raise _gone(response_id, 404, "response_id", "response_not_found")
    return stored.response


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, call: CurrentCall) -> DeletedResponse:
    """Forget a stored response."""
    if not call.service.responses.delete(response_id):
        raise _gone(response_id, 404, "response_id", "response_not_found")
    return DeletedResponse(id=response_id, object="response", deleted=True)


def _conversation(body: ResponseRequest, store: ResponseStore) -> list[KnownItem]:
    """The items of the request, after those of the response that it continues."""
    items: list[KnownItem] = []
    if body.previous_response_id is not None:
        stored = store.get(body.previous_response_id)
        if stored is None:
            raise _gone(body.previous_response_id, 400, "previous_response_id", "previous_response_not_found")
        items += stored.conversation
    if isinstance(body.input, str):
        return [*items, MessageItem(role="user", content=body.input)]
    size = 0
    for number, item in enumerate(body.input):
        if not isinstance(item, ReferenceItem):
            items.append(item)
            continue
        known = store.item(item.id)
        if known is None:
            raise _gone(item.id, 400, f"input.{number}.id", "item_not_found")
        size += len(known.model_dump_json())
        if size > MAX_TEXT:
            raise ApiError(400, f"The items that input refers to have more than {MAX_TEXT} characters.", "input")
        items.append(known)
    return items


def _gone(name: str, status: int, param: str, code: str) -> ApiError:
    message = (
        f"{name[:80]!r} is not stored. This server keeps the latest responses in memory until it ends, as far as "
        "--response-store allows, except those with store: false. Send the whole conversation as input instead."
    )
    return ApiError(status, message, param, code)


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
        body, params = self._body, self._prepared.params
        said = body.model_dump(
            mode="json", by_alias=True, exclude_none=True, include={"tools", "tool_choice", "text", "reasoning"}
        )
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
                "reasoning": said.get("reasoning", {}),
                "service_tier": body.service_tier,
                "store": body.store is not False,
                "temperature": params.temperature,
                "text": said["text"],
                "tool_choice": said["tool_choice"],
                "tools": said["tools"],
                "top_logprobs": body.top_logprobs or 0,
                "top_p": params.top_p,
                "truncation": "disabled",
                "user": body.user,
                **fields,
            }
        )
