"""Server-sent events: one JSON object per chunk, and [DONE] at the end unless the events have names."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ...errors import FaquantError
from ..errors import as_api_error

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # asks proxies not to buffer
COMMENT = b": keep-alive\n\n"
"""Clients ignore lines that begin with a colon (WHATWG HTML, section 9.2.6)."""


def event(data: str, name: str | None = None) -> bytes:
    return (b"" if name is None else b"event: " + name.encode() + b"\n") + b"data: " + data.encode() + b"\n\n"


class EventStream(Response):
    """Starts with the first chunk or comment, so that an earlier error has its own status. A later error is sent as an
    event.

    Sending waits for slow clients. That delays no other request, because the engine does not wait.

    Args:
        keep_alive: seconds without a chunk after which a comment is sent, because proxies and clients give up silent
            connections; 0: never.
        are_named: whether the field `type` of the chunks is the name of an event.
    """

    def __init__(
        self, chunks: AsyncGenerator[BaseModel, None], keep_alive: float = 0.0, are_named: bool = False
    ) -> None:
        self._chunks = chunks
        self._keep_alive = keep_alive
        self._are_named = are_named
        self.status_code = 200
        self.background = None
        self.media_type = "text/event-stream"
        self.init_headers(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = _Writer(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._chunks) as chunks:
            async with writer.kept_alive(self._keep_alive):
                try:
                    async for chunk in chunks:
                        await writer.write(self._event(chunk))
                except FaquantError as error:
                    if not writer.has_begun:
                        raise
                    last = event(as_api_error(error).body.model_dump_json())
                else:
                    last = b"" if self._are_named else event("[DONE]")
            await writer.write(last, more=False)

    def _event(self, chunk: BaseModel) -> bytes:
        name = getattr(chunk, "type", None) if self._are_named else None
        return event(chunk.model_dump_json(exclude_unset=True), name)


class _Writer:
    """Writes the body of a response, after `start`."""

    def __init__(self, send: Send, start: Message) -> None:
        self.has_begun = False
        self._send = send
        self._start = start
        self._lock = asyncio.Lock()
        self._time = asyncio.get_running_loop().time
        self._last = self._time()

    async def write(self, body: bytes, more: bool = True) -> None:
        async with self._lock:
            if not self.has_begun:
                self.has_begun = True
                await self._send(self._start)
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
            self._last = self._time()

    @asynccontextmanager
    async def kept_alive(self, seconds: float) -> AsyncIterator[None]:
        """Within the block, write a comment whenever nothing else was written for some seconds; 0: never."""
        task = asyncio.ensure_future(self._comment(seconds))
        try:
            yield
            await self._lock.acquire()  # do not cancel a comment that is being written
            self._lock.release()
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _comment(self, seconds: float) -> None:
        while seconds:
            rest = self._last + seconds - self._time()
            await (asyncio.sleep(rest) if rest > 0 else self.write(COMMENT))
