"""Server-sent events: one JSON object per chunk, and [DONE] at the end unless the events have names."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...errors import FaquantError
from ..errors import as_api_error

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # asks proxies not to buffer


def event(data: str, name: str | None = None) -> bytes:
    return (b"" if name is None else b"event: " + name.encode() + b"\n") + b"data: " + data.encode() + b"\n\n"


class EventStream(Response):
    """Starts with the first chunk, so that an earlier error has its own status. A later error is sent as an event.

    Sending waits for slow clients. That delays no other request, because the engine does not wait.

    are_named: whether the field `type` of the chunks is the name of an event.
    """

    def __init__(self, chunks: AsyncGenerator[BaseModel, None], are_named: bool = False) -> None:
        self._chunks = chunks
        self._are_named = are_named
        self.status_code = 200
        self.background = None
        self.media_type = "text/event-stream"
        self.init_headers(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(body: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        async with aclosing(self._chunks) as chunks:
            first = await anext(chunks)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await write(self._event(first))
            try:
                async for chunk in chunks:
                    await write(self._event(chunk))
            except FaquantError as error:
                await write(event(as_api_error(error).body.model_dump_json()), more=False)
            else:
                await write(b"" if self._are_named else event("[DONE]"), more=False)

    def _event(self, chunk: BaseModel) -> bytes:
        name = getattr(chunk, "type", None) if self._are_named else None
        return event(chunk.model_dump_json(exclude_unset=True), name)
