"""Which names a request may call the server by.

A web page can let its own name point at this machine once it is loaded (DNS rebinding). To the browser, the server then
has the page's origin, and neither CORS nor a loopback address keeps the page out; but its requests still say its name.
"""

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import ApiError
from .socket import is_loopback

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:%\[\]]+)(?::\d*)?")


class Hosts:
    """Lets those requests through whose Host is localhost, a loopback address, or one of these names, at any port.

    Starlette's TrustedHostMiddleware answers with plain text, not with an error object.
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
    # What the client has sent is not repeated: it may be anything.
    message = "The request's Host is no name of this server. Call it localhost, or name it with --allowed-hosts."
    return ApiError(421, message, code="unknown_host")
