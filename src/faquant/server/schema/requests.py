"""The bodies of requests. Unknown fields are refused; fields of OpenAI's API without effect on answers are accepted."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ...errors import UsageError
from ...structured.tools.calls import MAX_TOOLS
from ..config import MAX_CHOICES, MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_MESSAGES, MAX_PROMPTS, MAX_TEXT
from .messages import Body, Function, FunctionName, FunctionTool, Message, NamedTool, Text, TextPart, ToolChoice

TokenId = Annotated[int, Field(ge=0, lt=2**32)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TEXT)]
Metadata = dict[str, Any]
Tools = Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Verbosity = Literal["low", "medium", "high"]


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
    """How tokens are chosen, and fields without effect, in all requests for answers. A default of the model's own
    replaces one of these defaults (`ServerConfig.sampling_defaults`)."""

    model: Annotated[str, Field(max_length=1024)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
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
    def answers(self) -> int:
        """The number of answers to each prompt."""
        return 1

    @property
    def form(self) -> ResponseFormat | None:
        """The required format of the answer."""
        return None


class Conversing(Sampling):
    """A request for an answer to a conversation."""

    parallel_tool_calls: bool = True
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    @abstractmethod
    def offered(self) -> Sequence[FunctionTool]:
        """The tools."""

    @property
    @abstractmethod
    def choice(self) -> ToolChoice | None:
        """Which tools may or must be called."""

    @property
    def is_parallel(self) -> bool:
        """Whether the answer may have several calls."""
        return self.parallel_tool_calls

    @property
    def hints(self) -> dict[str, Any]:
        """Fields that only a template may use."""
        return {}


class Completing(Sampling):
    """The common fields of chat and plain completions."""

    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    response_format: ResponseFormat | None = None

    @property
    def answers(self) -> int:
        return self.n

    @property
    def form(self) -> ResponseFormat | None:
        return self.response_format

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class Prediction(Body):
    """Text that the answer is expected to contain; without effect."""

    type: Literal["content"]
    content: Text | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES)]


class ChatRequest(Completing, Conversing):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Tools = Field([])
    tool_choice: ToolChoice | None = None
    functions: Annotated[list[Function], Field(max_length=MAX_TOOLS)] = Field([])
    function_call: Literal["none", "auto"] | FunctionName | None = None
    reasoning_effort: Effort | None = None
    verbosity: Verbosity | None = None
    prediction: Prediction | None = None

    @model_validator(mode="after")
    def _agrees(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise UsageError("top_logprobs requires logprobs: true.", "top_logprobs")
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise UsageError("max_tokens and max_completion_tokens differ; use only one.", "max_tokens")
        for new, old in (("tools", "functions"), ("tool_choice", "function_call")):
            if getattr(self, new) and getattr(self, old):
                raise UsageError(f"{old} is an older name of {new}; use only one.", old)
        return self

    @property
    def offered(self) -> Sequence[FunctionTool]:
        return self.tools or [FunctionTool(type="function", function=function) for function in self.functions]

    @property
    def choice(self) -> ToolChoice | None:
        if isinstance(self.function_call, FunctionName):
            return NamedTool(type="function", function=self.function_call)
        return self.function_call or self.tool_choice

    @property
    def is_parallel(self) -> bool:
        return self.parallel_tool_calls and not self.functions

    @property
    def names(self) -> dict[str, str]:
        """The names of the fields that it has in place of others."""
        names = {"max_tokens": "max_completion_tokens"} if self.max_completion_tokens is not None else {}
        return names | ({"tools": "functions", "tool_choice": "function_call"} if self.functions else {})

    @property
    def hints(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in ("reasoning_effort", "verbosity", "prediction")}
        return {name: value for name, value in given.items() if value is not None}


class CompletionRequest(Completing):
    """POST /v1/completions"""

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None


class TokenizeRequest(Body):
    """POST /tokenize: a prompt as /v1/completions takes it, or messages as /v1/chat/completions does."""

    model: Annotated[str, Field(max_length=1024)] | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: Tools = Field([])
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise UsageError("Exactly one of prompt and messages is required.", "prompt")
        for field in ("tools", "chat_template_kwargs"):
            if self.messages is None and getattr(self, field):
                raise UsageError(f"{field} requires messages.", field)
        return self


class DetokenizeRequest(Body):
    """POST /detokenize"""

    model: Annotated[str, Field(max_length=1024)] | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TEXT)]
    skip_special_tokens: bool = False
