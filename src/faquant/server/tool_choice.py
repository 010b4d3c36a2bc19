"""What of a request's tools the answer may or must call."""

from collections.abc import Sequence
from dataclasses import replace

from ..engine.tools.calls import Tool, ToolCalls
from .errors import ApiError
from .messages import AllowedToolsChoice, FunctionTool, NamedTool
from .protocol import ChatRequest


def all_calls(tools: Sequence[FunctionTool], format: str | None) -> ToolCalls:
    """Calls of any of the tools. Raises: ApiError, UsageError: as tool_calls."""
    if format is None:
        message = "The format in which this model calls tools is not known; the server's --tool-call-parser names it."
        raise ApiError(400, message, "tools", "unsupported_parameter")
    return ToolCalls(tuple(Tool(tool.function.name, tool.function.parameters) for tool in tools), format)


def tool_calls(request: ChatRequest, format: str | None) -> ToolCalls | None:
    """format: in which the model writes calls, None where that is not known. None: the request has no tools.

    Raises:
        ApiError: the request contradicts itself, or this model can call no tools.
        UsageError: two tools have one name, or parameters cannot be enforced.
    """
    tools, choice = request.tools, request.tool_choice
    if tools is None:
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice wants a call, but there are no tools.", "tool_choice")
        return None
    calls = all_calls(tools, format)
    given = {tool.name: tool for tool in calls.tools}
    has_form = request.response_format is not None and request.response_format.type != "text"
    if choice == "none":
        return None if has_form else replace(calls, tools=())
    if has_form:
        message = "Tools and a response_format exclude each other, unless tool_choice is none."
        raise ApiError(400, message, "response_format", "unsupported_parameter")
    names, forced = list(given), choice == "required"
    if isinstance(choice, NamedTool):
        names, forced = [choice.function.name], True
    elif isinstance(choice, AllowedToolsChoice):
        allowed = choice.allowed_tools
        names, forced = [tool.function.name for tool in allowed.tools], allowed.mode == "required"
    unknown = [name for name in names if name not in given]
    if unknown:
        raise ApiError(400, f"tool_choice names {unknown[0]}, which is not among the tools.", "tool_choice")
    parallel = request.parallel_tool_calls and not isinstance(choice, NamedTool)
    return replace(calls, tools=tuple(given[name] for name in dict.fromkeys(names)), forced=forced, parallel=parallel)
