"""Paths that this server does not have: errors that say what is missing."""

from fastapi import FastAPI, Request, Response

from ..errors import ApiError, as_api_error

_SERVED = "/v1/chat/completions, /v1/completions, /v1/responses and /v1/models"
_MISSING = {
    "assistants": "assistants",
    "audio": "speech or transcription",
    "batches": "batches",
    "chatkit": "ChatKit",
    "containers": "containers",
    "conversations": "stored conversations, but previous_response_id in /v1/responses",
    "embeddings": "embeddings",
    "evals": "evals",
    "files": "files",
    "fine_tuning": "fine-tuning",
    "images": "images",
    "messages": "Anthropic's API",
    "moderations": "moderation",
    "pooling": "pooling models",
    "realtime": "realtime sessions",
    "rerank": "reranking",
    "score": "scoring models",
    "threads": "threads",
    "uploads": "uploads",
    "vector_stores": "vector stores",
    "videos": "videos",
}
"""What a client of OpenAI's API may ask for, by the first part of the path."""


def unknown_path(method: str, path: str) -> ApiError:
    """The error for a path that does not exist."""
    shown = f"{method} {path[:200]}"
    parts = path.strip("/").split("/")
    missing = _MISSING.get(parts[1]) if parts[0] == "v1" and len(parts) > 1 else None
    if missing is not None:
        message = f"{shown} is not supported: this server writes text and has no {missing}. It serves {_SERVED}."
    elif parts[0] in ("chat", "completions", "responses", "models") or path.startswith("/v1/v1/"):
        message = f"{shown} does not exist. The client's base URL must end with /v1, once: the server has {_SERVED}."
    else:
        message = f"{shown} does not exist. The server has {_SERVED}, and others that /openapi.json lists."
    return ApiError(404, message, code="unknown_url")


def handle_unknown_paths(app: FastAPI) -> None:
    """Answer requests for unknown paths with the error object."""

    async def answer(request: Request, error: Exception) -> Response:
        is_unknown = not isinstance(error, ApiError)
        return (unknown_path(request.method, request.url.path) if is_unknown else as_api_error(error)).response()

    async def answer_other_method(request: Request, error: Exception) -> Response:
        message = f"{request.method} {request.url.path[:200]} is not supported; see /openapi.json."
        return ApiError(405, message, code="unknown_url", headers=as_api_error(error).headers).response()

    app.add_exception_handler(404, answer)
    app.add_exception_handler(405, answer_other_method)
