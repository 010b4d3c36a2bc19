"""What of a request's tools the answer may or must call."""

from collections.abc import Sequence
from dataclasses import replace

from ...structured.tools.calls import Tool, ToolCalls
from ..errors import ApiError
from ..schema.messages import AllowedToolsChoice, FunctionTool, NamedTool
from ..schema.requests import ChatRequest


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
        UsageError: two tools have one name, parameters cannot be enforced, or a tool that is chosen is not there.
    """
    tools, choice = request.tools, request.tool_choice
    if tools is None:
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice wants a call, but there are no tools.", "tool_choice")
        return None
    calls = all_calls(tools, format)
    has_form = request.response_format is not None and request.response_format.type != "text"
    if choice == "none":
        return None if has_form else replace(calls, tools=())
    if has_form:
        message = "Tools and a response_format exclude each other, unless tool_choice is none."
        raise ApiError(400, message, "response_format", "unsupported_parameter")
    if isinstance(choice, NamedTool):
        return replace(calls.only([choice.function.name]), forced=True, parallel=False)
    mode: str | None
    if isinstance(choice, AllowedToolsChoice):
        allowed = choice.allowed_tools
        calls, mode = calls.only(tool.function.name for tool in allowed.tools), allowed.mode
    else:
        mode = choice
    return replace(calls, forced=mode == "required", parallel=request.parallel_tool_calls)
