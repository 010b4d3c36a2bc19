"""The chat page at /, from the static files in page/."""

from functools import cache
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request, Response

from ..errors import ApiError

_JAVASCRIPT = "text/javascript; charset=utf-8"
_MEDIA_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "page.js": _JAVASCRIPT,
    "answer.js": _JAVASCRIPT,
    "messages.js": _JAVASCRIPT,
    "server.js": _JAVASCRIPT,
    "settings.js": _JAVASCRIPT,
    "status.js": _JAVASCRIPT,
    "text.js": _JAVASCRIPT,
}
PATHS = frozenset({"/", *(f"/page/{name}" for name in _MEDIA_TYPES)})
"""Paths that need no API key: the page itself asks for the key."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter(include_in_schema=False)


@cache
def _read(name: str) -> tuple[bytes, str]:
    """A file and its ETag, a digest of the content: modification times and sizes may be equal in another version."""
    content = (Path(__file__).parent / name).read_bytes()
    return content, f'"{sha256(content).hexdigest()[:32]}"'


@router.api_route("/", methods=["GET", "HEAD"])
async def index(request: Request) -> Response:
    return await file("index.html", request)


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def file(name: str, request: Request) -> Response:
    if name not in _MEDIA_TYPES:
        raise ApiError(404, "Not Found")
    content, etag = _read(name)
    headers = {**_HEADERS, "ETag": etag}
    known = request.headers.get("if-none-match", "")
    if etag in [each.strip().removeprefix("W/") for each in known.split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(content, headers={**headers, "Content-Type": _MEDIA_TYPES[name]})
