"""Converts the fields of a request to SamplingParams and ToolCalls."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...sampling.params import SamplingParams
from ...structured.reasoning import Reasoning
from ...structured.structured_output import StructuredOutput
from ...structured.tools.calls import Tool, ToolCalls
from ..errors import ApiError, errors_for
from ..schema.messages import AllowedToolsChoice, FunctionTool, NamedTool
from ..schema.requests import Conversing, ResponseFormat, Sampling

_SAME_NAMES = (
    *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("seed", "min_tokens", "ignore_eos"),
)


def sampling_fields(request: Sampling, defaults: Mapping[str, float]) -> dict[str, Any]:
    """The request's values for SamplingParams. defaults: values of fields that the request does not have."""
    given: dict[str, Any] = {name: getattr(request, name) for name in _SAME_NAMES}
    return given | {name: value for name, value in defaults.items() if name not in request.model_fields_set}


def sampling_params(
    request: Sampling,
    max_tokens: int,
    logprobs: int | None,
    defaults: Mapping[str, float],
    calls: ToolCalls | None = None,
    reasoning: Reasoning | None = None,
) -> SamplingParams:
    """The sampling parameters of a request. defaults: as for `sampling_fields`.

    Raises:
        UsageError: a value is outside its range.
        ApiError: the response format cannot be enforced.
    """
    wanted = sampling_fields(request, defaults)
    if wanted["top_p"] == 0:  # only the likeliest token is left
        wanted |= {"temperature": 0.0, "top_p": 1.0}
    wanted["stop"] = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
    wanted["stop_token_ids"] = tuple(request.stop_token_ids)
    wanted["logit_bias"] = {int(token): bias for token, bias in request.logit_bias.items()}
    with errors_for("response_format"):
        wanted["structured_output"] = _structure(request.form, calls)
    return SamplingParams(**wanted, n=request.answers, max_tokens=max_tokens, logprobs=logprobs, reasoning=reasoning)


def _structure(asked: ResponseFormat | None, calls: ToolCalls | None) -> StructuredOutput | None:
    """The structured output for a response format and tools; None for plain text."""
    wanted: dict[str, Any] = {} if calls is None else {"tool_calls": calls}
    if asked is not None and asked.type != "text" and not (calls is not None and calls.forced):
        if asked.json_schema is None:
            wanted["json_object"] = True
        else:
            wanted["json_schema"] = asked.json_schema.schema_ or {}
            wanted["strict"] = bool(asked.json_schema.strict)
    return StructuredOutput(**wanted) if wanted else None


def all_calls(tools: Sequence[FunctionTool], format: str | None) -> ToolCalls:
    """ToolCalls with all of the tools. Raises: ApiError, UsageError: as `tool_calls`."""
    if format is None:
        message = "The tool-call format of this model is unknown; start the server with --tool-call-parser."
        raise ApiError(400, message, "tools", "unsupported_parameter")
    functions = [tool.function for tool in tools]
    return ToolCalls(tuple(Tool(one.name, one.parameters, bool(one.strict)) for one in functions), format)


def tool_calls(request: Conversing, format: str | None) -> ToolCalls | None:
    """The tools that the answer may or must call; None if the request has no tools.

    Args:
        format: the model's tool-call format; None if unknown.

    Raises:
        ApiError: the request is inconsistent, or the model's tool-call format is unknown.
        UsageError: two tools have the same name, parameters cannot be enforced, or the chosen tool does not exist.
    """
    tools, choice = request.offered, request.choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice requires a call, but no tools are given.", "tool_choice")
        return None
    if choice == "none":  # the tools do not matter, not even whether their schemas can be enforced
        has_form = request.form is not None and request.form.type != "text"
        return None if has_form or format is None else ToolCalls((), format)
    calls = all_calls(tools, format)
    if isinstance(choice, NamedTool):
        return replace(calls.only([choice.function.name]), forced=True, parallel=False)
    mode: str | None
    if isinstance(choice, AllowedToolsChoice):
        allowed = choice.allowed_tools
        calls, mode = calls.only(tool.function.name for tool in allowed.tools), allowed.mode
    else:
        mode = choice
    return replace(calls, forced=mode == "required", parallel=request.is_parallel)
