"""Middleware for every request: its id, the API key, the timeout, disconnecting clients and the log."""

import asyncio
import contextlib
import logging
from collections.abc import MutableMapping
from hashlib import sha256
from hmac import compare_digest
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ApiError, as_api_error
from ..operate.metrics import Metrics
from ..operate.record import Record, request_id
from ..page import files as chat_page
from .limits import Gate
from .streaming import event

log = logging.getLogger(__name__)

OPEN_PATHS = chat_page.PATHS | {"/health"}
_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE")


class Access:
    """Assigns the request id and checks the API key; at the end, frees the request's place in the queue and logs it."""

    def __init__(self, app: ASGIApp, gate: Gate, metrics: Metrics, api_key: str | None) -> None:
        self._app = app
        self._gate = gate
        self._metrics = metrics
        # Digests have equal lengths, so that comparing them does not reveal the length of the key.
        self._key = None if api_key is None else sha256(api_key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        record = Record(request_id(headers.get("x-request-id", "")), method, scope["path"][:200])
        scope["faquant.record"] = record
        status: int | None = None

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = record.request_id
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                record.status = status or 500

        try:
            if self._may(headers, scope["path"]):
                await self._app(scope, receive, answer)
            else:
                await _refused().response()(scope, receive, answer)
        except Exception as error:
            log.exception("A request failed", extra={"fields": {"id": record.request_id}})
            if status is None:
                await as_api_error(error).response()(scope, receive, answer)
        finally:
            self._end(record, scope)

    def _may(self, headers: Headers, path: str) -> bool:
        if self._key is None or path in OPEN_PATHS:
            return True
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        is_right = compare_digest(self._key, sha256(shown.encode("latin-1")).digest())
        return is_right and scheme.lower() == "bearer"

    def _end(self, record: Record, scope: MutableMapping[str, Any]) -> None:
        record.end()
        self._gate.leave(record)
        self._metrics.observe(record, getattr(scope.get("route"), "path", "other"))
        # Monitoring sends such requests every few seconds.
        is_monitoring = record.method == "GET" and record.status == 200
        log.log(logging.DEBUG if is_monitoring else logging.INFO, "request", extra={"fields": record.as_log()})


class Supervisor:
    """Cancels a request when its client disconnects, or after `timeout` seconds (0: never)."""

    def __init__(self, app: ASGIApp, timeout: float) -> None:
        self._app = app
        self._timeout = timeout or None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body_read = asyncio.Event()
        progress = _Progress()

        async def read(*_: object) -> Message:
            message = await receive()
            if not message.get("more_body", False):
                body_read.set()
            return message

        async def write(message: Message) -> None:
            progress.begun(message)
            await send(message)  # waits for a slow reader
            progress.sent(message)

        async def client_disconnects() -> None:
            await body_read.wait()
            while (await receive())["type"] != "http.disconnect":
                pass

        answer = asyncio.ensure_future(self._app(scope, read, write))
        disconnected = asyncio.ensure_future(client_disconnects())
        late = False
        try:
            await asyncio.wait({answer, disconnected}, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
            if progress.complete:  # disconnecting after a complete answer is normal
                await asyncio.wait({answer})
            late = not answer.done() and not disconnected.done()
        finally:
            disconnected.cancel()
            answer.cancel()
            await asyncio.wait({answer, disconnected})
        if not answer.cancelled():
            answer.result()
        elif late:
            with contextlib.suppress(asyncio.TimeoutError):  # the client reads too slowly
                await asyncio.wait_for(self._report_timeout(progress, body_read.is_set(), scope, receive, send), 1.0)

    async def _report_timeout(
        self, progress: "_Progress", body_was_read: bool, scope: Scope, receive: Receive, send: Send
    ) -> None:
        error = ApiError(
            504 if body_was_read else 408, f"The request took longer than {self._timeout} seconds.", code="timeout"
        )
        if not progress.started:
            await error.response()(scope, receive, send)
        elif progress.is_event_stream:
            body = event(error.body.model_dump_json())
            await send({"type": "http.response.body", "body": body, "more_body": False})


class _Progress:
    """Tracks how much of a response has been sent."""

    started = False
    complete = False
    is_event_stream = False

    def begun(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.is_event_stream = Headers(raw=message["headers"]).get("content-type", "").startswith("text/event")

    def sent(self, message: Message) -> None:
        self.complete = message["type"] == "http.response.body" and not message.get("more_body", False)


def _refused() -> ApiError:
    message = "The API key is missing or wrong; send it as the header Authorization: Bearer KEY."
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
