"""From a request's fields to SamplingParams."""

from typing import Any

from ...sampling.params import SamplingParams
from ...structured.structured_output import StructuredOutput
from ...structured.tools.calls import ToolCalls
from ..errors import blamed_on
from ..schema.requests import ResponseFormat, Sampling

_SAME_NAMES = (
    *("n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("seed", "min_tokens", "ignore_eos"),
)


def sampling_params(
    request: Sampling, max_tokens: int, logprobs: int | None, calls: ToolCalls | None = None
) -> SamplingParams:
    """What the request asks of the sampler.

    Raises:
        UsageError: a value is outside its range.
        ApiError: the response format cannot be enforced.
    """
    wanted: dict[str, Any] = {name: getattr(request, name) for name in _SAME_NAMES}
    wanted["stop"] = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
    wanted["stop_token_ids"] = tuple(request.stop_token_ids)
    wanted["logit_bias"] = {int(token): bias for token, bias in request.logit_bias.items()}
    with blamed_on("response_format"):
        wanted["structured_output"] = (
            _structure(request.response_format) if calls is None else StructuredOutput(tool_calls=calls)
        )
    return SamplingParams(**wanted, max_tokens=max_tokens, logprobs=logprobs)


def _structure(asked: ResponseFormat | None) -> StructuredOutput | None:
    """What an answer must be; None where any text will do."""
    if asked is None or asked.type == "text":
        return None
    if asked.json_schema is None:
        return StructuredOutput(json_object=True)
    return StructuredOutput(json_schema=asked.json_schema.schema_ or {})
