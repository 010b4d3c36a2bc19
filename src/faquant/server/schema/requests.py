"""The bodies of requests. Unknown fields are refused; fields of OpenAI's API without effect on answers are accepted."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ...errors import UsageError
from ...structured.tools.calls import MAX_TOOLS
from ..config import MAX_CHOICES, MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_MESSAGES, MAX_PROMPTS, MAX_TEXT
from .messages import Body, FunctionTool, Message, Text, ToolChoice

TokenId = Annotated[int, Field(ge=0, lt=2**32)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TEXT)]
Metadata = dict[str, Any]
Tools = Annotated[list[FunctionTool], Field(min_length=1, max_length=MAX_TOOLS)]


class JsonSchema(Body):
    """A schema that the answer must follow."""

    name: Annotated[str, Field(max_length=64)]
    description: Annotated[str, Field(max_length=4096)] | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Body):
    """The required format of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is required for the type json_schema, and not allowed for others")
        return self


class StreamOptions(Body):
    """Options of a stream. `include_obfuscation`, random padding against eavesdroppers, is not supported."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class Sampling(Body):
    """The common fields of chat and plain completions."""

    model: Annotated[str, Field(max_length=1024)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[
        dict[Annotated[str, Field(pattern=r"^\d{1,10}$")], Annotated[float, Field(ge=-100, le=100)]],
        Field(max_length=MAX_LOGIT_BIAS),
    ] = Field({})
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=1024)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=64)]
    ) = Field([])
    response_format: ResponseFormat | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    top_k: Annotated[int, Field(ge=-1, lt=2**31)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] = 0
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] = Field([])
    ignore_eos: bool = False

    user: str | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @model_validator(mode="after")
    def _streams(self) -> "Sampling":
        if self.stream_options is not None and not self.stream:
            raise UsageError("stream_options requires stream: true.", "stream_options")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Sampling):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise UsageError("top_logprobs requires logprobs: true.", "top_logprobs")
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise UsageError("max_tokens and max_completion_tokens differ; use only one.", "max_tokens")
        return self


class CompletionRequest(Sampling):
    """POST /v1/completions"""

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None


class TokenizeRequest(Body):
    """POST /tokenize: a prompt as /v1/completions takes it, or messages as /v1/chat/completions does."""

    model: Annotated[str, Field(max_length=1024)] | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: Tools | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise UsageError("Exactly one of prompt and messages is required.", "prompt")
        for field in ("tools", "chat_template_kwargs"):
            if self.messages is None and getattr(self, field) is not None:
                raise UsageError(f"{field} requires messages.", field)
        return self


class DetokenizeRequest(Body):
    """POST /detokenize"""

    model: Annotated[str, Field(max_length=1024)] | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TEXT)]
    skip_special_tokens: bool = False
