"""Server-sent events: one JSON object a chunk, [DONE] at the end."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...errors import FaquantError
from ..errors import as_api_error

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies shall pass chunks on at once


def event(data: str) -> bytes:
    return b"data: " + data.encode() + b"\n\n"


class EventStream(Response):
    """Begins with the first chunk, so what fails before it has a status of its own; what fails later is an event.

    Sending waits for a reader that is slow. That holds nobody else back: the engine does not wait.
    """

    def __init__(self, chunks: AsyncGenerator[BaseModel, None]) -> None:
        self._chunks = chunks
        self.status_code = 200
        self.background = None
        self.media_type = "text/event-stream"
        self.init_headers(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(body: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        async with aclosing(self._chunks) as chunks:
            first = await anext(chunks)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await tell(event(first.model_dump_json(exclude_unset=True)))
            try:
                async for chunk in chunks:
                    await tell(event(chunk.model_dump_json(exclude_unset=True)))
            except FaquantError as error:
                await tell(event(as_api_error(error).body.model_dump_json()), more=False)
            else:
                await tell(event("[DONE]"), more=False)
