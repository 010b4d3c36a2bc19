"""Errors in OpenAI's format: an object with message, type, param and code, and an HTTP status."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ..engine.async_engine import EngineStoppedError
from ..errors import AnswerError, FaquantError, UnsupportedError, UsageError
from .config import MAX_TEXT
from .schema.messages import Body

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_SHOWN_PROBLEMS = 3


class ErrorObject(BaseModel):
    """The description of an error. `param` is the request field that caused it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every error response."""

    error: ErrorObject


class ApiError(HTTPException):
    """Ends a request with this status and message."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param = param
        self.code = code

    @property
    def body(self) -> ErrorResponse:
        kind = _TYPES.get(self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error")
        return ErrorResponse(error=ErrorObject(message=str(self.detail), type=kind, param=self.param, code=self.code))

    def response(self) -> Response:
        return Response(self.body.model_dump_json(), self.status_code, self.headers, "application/json")


@contextmanager
def errors_for(param: str | None) -> Iterator[None]:
    """Convert UsageError and UnsupportedError to ApiError, with `param` unless the error names another field."""
    try:
        yield
    except (UsageError, UnsupportedError) as error:
        raise ApiError(400, str(error), getattr(error, "field", None) or param) from None


@contextmanager
def errors_renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Replace fields in errors by those that the request has in their place, by name."""
    try:
        yield
    except ApiError as error:
        given = names.get(error.param or "")
        if given is None:
            raise
        message = str(error.detail)
        if error.param and "_" in error.param:  # otherwise it is a word
            message = message.replace(error.param, given)
        raise ApiError(error.status_code, message, given, error.code) from None


def as_api_error(error: Exception) -> ApiError:
    """Convert an error to an ApiError. Unexpected errors are reported to the client without details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors())
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, UsageError | UnsupportedError):
        return ApiError(400, str(error), getattr(error, "field", None))
    if isinstance(error, EngineStoppedError):
        return ApiError(503, str(error), code="engine_stopped")
    if isinstance(error, AnswerError):
        return ApiError(500, str(error), code="invalid_answer")
    if isinstance(error, FaquantError):
        return ApiError(500, str(error))
    return ApiError(500, "The server failed to answer this request; see its log.", code="internal_error")


def handle_errors(app: FastAPI) -> None:
    """Register handlers that answer expected errors with the error object."""

    async def answer(_: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    for kind in (HTTPException, RequestValidationError, FaquantError):
        app.add_exception_handler(kind, answer)


def _invalid(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    problems = [problem for problem in problems if not _is_from_other_branch(problem)] or problems
    shown = []
    for problem in problems[:_SHOWN_PROBLEMS]:
        where = _place(problem)
        if problem["type"] == "extra_forbidden":
            shown.append(f"{where} is not supported by this server.")
        elif problem["type"] == "value_error":
            said = str(problem["msg"]).removeprefix("Value error, ")
            shown.append(f"{where}: {said}.")
        elif _is_long_text(problem):
            shown.append(f"The prompt is too long: {where} has more than {MAX_TEXT} characters.")
        elif not where:
            shown.append("The body must be a JSON object, sent with Content-Type: application/json.")
        else:
            shown.append(f"{where}: {problem['msg']}.")
    first = _place(problems[0]) or None
    code = "unsupported_parameter" if problems[0]["type"] == "extra_forbidden" else None
    if _is_long_text(problems[0]):
        code = "context_length_exceeded"
    return ApiError(400, " ".join(dict.fromkeys(shown)), first, code)


def _is_long_text(problem: Mapping[str, Any]) -> bool:
    return problem["type"] == "string_too_long" and problem["ctx"]["max_length"] == MAX_TEXT


def _is_from_other_branch(problem: Mapping[str, Any]) -> bool:
    """Whether pydantic reports that a list is not a string, or the reverse, for a field that accepts both."""
    wanted, value = problem["type"], problem.get("input")
    return (wanted == "string_type" and isinstance(value, list)) or (wanted == "list_type" and isinstance(value, str))


def _place(problem: Mapping[str, Any]) -> str:
    """The path of a field, such as messages.0.content, without the names of union branches."""
    path = [str(part) for part in problem["loc"][1:]]
    branches = {kind.__name__ for kind in Body.__subclasses__()}
    plain = [part for part in path if part not in branches and (part.isdecimal() or part.replace("_", "").isalnum())]
    text = ".".join(plain)[:200]
    # A client can send any field name, so escape it.
    return json.dumps(text)[1:-1]
