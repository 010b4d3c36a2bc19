"""Limits of requests: the number of concurrent sequences, and the size of the body, which must be strict JSON."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from ..errors import ApiError
from ..operate.record import Record


class Gate:
    """Limits the number of running and waiting sequences.

    Args:
        running: maximum running sequences.
        waiting: maximum waiting sequences.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self.capacity = running + waiting
        self.inside = 0
        self.closed = False

    def enter(self, record: Record, sequences: int) -> None:
        """Admit a request until `leave`. Raises: ApiError: the queue is full, or the server is shutting down."""
        if self.closed:
            raise ApiError(503, "The server is shutting down.", code="shutting_down", headers={"Retry-After": "10"})
        if sequences > self.capacity:
            raise ApiError(
                400, f"{sequences} answers are requested; this server allows at most {self.capacity} at once.", "n"
            )
        if self.inside + sequences > self.capacity:
            message = f"The queue is full: {self.inside} answers are running or waiting. Try again later."
            raise ApiError(429, message, code="too_many_requests", headers={"Retry-After": "1"})
        self.inside += sequences
        record.sequences += sequences

    def leave(self, record: Record) -> None:
        self.inside -= record.sequences


class _StrictRequest(Request):
    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            limit = self.app.state.service.config.max_body
            too_large = ApiError(413, f"The body is larger than {limit} bytes.", code="body_too_large")
            length = self.headers.get("content-length", "")
            if length.isdecimal() and int(length[:20]) > limit:
                raise too_large
            data = bytearray()
            async for chunk in self.stream():
                data += chunk
                if len(data) > limit:
                    raise too_large
            self._body = bytes(data)
        return self._body

    async def json(self) -> Any:
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise ApiError(400, f"The body is not valid JSON: {error}.", code="invalid_json") from None


class StrictRoute(APIRoute):
    """A route that limits the size of the body and parses it as strict JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict
