"""From a request's fields to SamplingParams."""

from dataclasses import fields
from typing import Any

from ..engine.sampling import SamplingParams
from .errors import ApiError
from .protocol import ResponseFormat, Sampling

_KNOWN = {field.name for field in fields(SamplingParams)}
_SAME_NAMES = (
    *("n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("seed", "min_tokens", "ignore_eos"),
)


def sampling_params(request: Sampling, max_tokens: int, logprobs: int | None) -> SamplingParams:
    """What the request asks of the sampler.

    Raises:
        ApiError: it asks for something that the sampler does not do.
        UsageError: a value is outside its range.
    """
    wanted: dict[str, Any] = {name: getattr(request, name) for name in _SAME_NAMES}
    wanted["stop"] = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
    wanted["stop_token_ids"] = tuple(request.stop_token_ids)
    wanted["logit_bias"] = {int(token): bias for token, bias in request.logit_bias.items()}
    wanted["structured_output"] = _structure(request.response_format)
    for name in sorted(wanted.keys() - _KNOWN):
        if wanted.pop(name):  # 0, nothing and empty ask for nothing
            field = "response_format" if name == "structured_output" else name
            raise ApiError(400, f"{field} is not supported by this server.", field, "unsupported_parameter")
    return SamplingParams(**wanted, max_tokens=max_tokens, logprobs=logprobs)


def _structure(asked: ResponseFormat | None) -> dict[str, Any] | None:
    """The arguments of the structured output; None where any text will do."""
    if asked is None or asked.type == "text":
        return None
    if asked.json_schema is None:
        return {"json_object": True}
    return {"json_schema": asked.json_schema.schema_ or {}}
