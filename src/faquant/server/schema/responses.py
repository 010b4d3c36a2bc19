"""The bodies of responses, in OpenAI's formats. Fields that are not set are omitted."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

FinishReason = Literal["stop", "length", "tool_calls", "function_call"]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class TopLogprob(_Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Answer):
    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(_Answer):
    """`text_offset` counts characters from the beginning of the text. The first token of a prompt has no logprobs."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptTokensDetails(_Answer):
    cached_tokens: int


class CompletionTokensDetails(_Answer):
    reasoning_tokens: int


class Usage(_Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class _Message(_Answer):
    role: Literal["assistant"]
    reasoning_content: str | None

    @model_serializer(mode="wrap")
    def _without_missing_reasoning(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        if self.reasoning_content is None:
            del fields["reasoning_content"]
        return fields


class ChatMessage(_Message):
    content: str
    refusal: None


class ToolCallFunction(_Answer):
    name: str
    arguments: str


class ToolCall(_Answer):
    id: str
    type: Literal["function"] = "function"
    function: ToolCallFunction


class CallsMessage(_Message):
    content: str | None
    refusal: None
    tool_calls: list[ToolCall]


class FunctionMessage(_Message):
    content: str | None
    refusal: None
    function_call: ToolCallFunction


class ChatChoice(_Answer):
    index: int
    message: CallsMessage | FunctionMessage | ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(_Answer):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(_Answer):
    name: str | None = None
    arguments: str


class ToolCallDelta(_Answer):
    """A part of a call. The first one has all fields; the others only continue the arguments."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(_Answer):
    role: Literal["assistant"] | None = None
    reasoning_content: str | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    function_call: FunctionDelta | None = None


class ChatChunkChoice(_Answer):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None


class ChatChunk(_Answer):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChoice(_Answer):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class CompletionResponse(_Answer):
    """A plain completion, or a chunk of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ModelCard(_Answer):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["faquant"] = "faquant"
    max_model_len: int


class ModelList(_Answer):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Tokenized(_Answer):
    tokens: list[int]
    count: int
    max_model_len: int


class Detokenized(_Answer):
    prompt: str


class Health(_Answer):
    status: Literal["ok"] = "ok"


class Version(_Answer):
    version: str
