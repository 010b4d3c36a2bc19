"""How bodies are read: within a limit, and as JSON without NaN, Infinity or half surrogates."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from ..errors import ApiError


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
            raise ApiError(400, f"The body is no JSON: {error}.", code="invalid_json") from None


class StrictRoute(APIRoute):
    """A route whose body is read so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict
