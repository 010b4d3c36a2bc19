"""What of a request's tools the answer may or must call."""

from ..engine.tools.calls import Tool, ToolCalls
from .errors import ApiError
from .messages import AllowedToolsChoice, NamedTool
from .protocol import ChatRequest


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
    if format is None:
        message = "The format in which this model calls tools is not known; the server's --tool-call-parser names it."
        raise ApiError(400, message, "tools", "unsupported_parameter")
    given = {tool.function.name: Tool(tool.function.name, tool.function.parameters) for tool in tools}
    if len(given) < len(tools):
        raise ApiError(400, "Two tools have the same name.", "tools")
    has_form = request.response_format is not None and request.response_format.type != "text"
    if choice == "none":
        return None if has_form else ToolCalls((), format)
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
    return ToolCalls(tuple(given[name] for name in dict.fromkeys(names)), format, forced, parallel)
