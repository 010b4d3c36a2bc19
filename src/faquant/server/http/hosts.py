"""Checks the Host header, as a protection against DNS rebinding.

After it has been loaded, a web page can make its own host name point to this machine. For the browser, the server then
has the page's origin, so neither CORS nor a loopback address blocks the page; but its requests still contain its name.
"""

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import ApiError
from .socket import is_loopback

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:%\[\]]+)(?::\d*)?")


class Hosts:
    """Accepts requests whose Host is localhost, a loopback address, or one of the names, with any port.

    Starlette's TrustedHostMiddleware would answer with plain text, not with an error object.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app = app
        self._names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._knows(Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
        else:
            await _misdirected().response()(scope, receive, send)

    def _knows(self, host: str) -> bool:
        match = _HOST.fullmatch(host.lower())
        if match is None:
            return False
        name = match[1].strip("[]")
        if name in self._names:
            return True
        try:
            return is_loopback(name)
        except ValueError:
            return False


def _misdirected() -> ApiError:
    # The message does not repeat the client's header, which can be anything.
    message = "The request's Host is not a name of this server. Use localhost, or allow the name with --allowed-hosts."
    return ApiError(421, message, code="unknown_host")
