"""pydantic-ai: agents over both of OpenAI's APIs."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, PromptedOutput, RunContext, ToolOutput
from pydantic_ai.capabilities import AbstractCapability, PrepareOutputTools, PrepareTools
from pydantic_ai.messages import ModelResponse, ToolCallPart, ToolReturnPart
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from clients.weather import (
    FORECAST,
    LIMIT,
    QUESTION,
    TOKENS,
    TOO_LONG,
    Anything,
    Asked,
    Forecast,
    Served,
    report,
)

pytestmark = pytest.mark.clients

Ask = Callable[..., dict[str, Any]]
# A prompted output is in JSON mode, where only the prompt asks for the schema.
OUTPUTS: dict[str, tuple[Any, type[BaseModel]]] = {
    "tool": (ToolOutput(Forecast), Forecast),
    "native": (NativeOutput(Forecast), Forecast),
    "prompted": (PromptedOutput(Anything), Anything),
}


@pytest.fixture(scope="module", params=["chat", "responses"])
def model(served: Served, request: pytest.FixtureRequest) -> Model:
    provider = OpenAIProvider(base_url=served.url, api_key=served.key)
    kind = OpenAIChatModel if request.param == "chat" else OpenAIResponsesModel
    return kind(served.model, provider=provider, settings=ModelSettings(temperature=0, max_tokens=LIMIT))


@pytest.fixture(autouse=True)
def one_loop() -> Iterator[None]:
    """The provider's HTTP client belongs to the loop of its first request."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()


def test_a_chat_and_its_stream(model: Model, ask: Ask) -> None:
    raw = ask(QUESTION, max_tokens=TOKENS)
    agent = Agent(model, model_settings=ModelSettings(max_tokens=TOKENS))
    result = agent.run_sync(QUESTION)
    assert result.output == raw["choices"][0]["message"]["content"]
    assert result.usage.input_tokens == raw["usage"]["prompt_tokens"]
    assert result.usage.output_tokens == raw["usage"]["completion_tokens"]

    async def streamed() -> list[str]:
        async with agent.run_stream(QUESTION) as stream:
            return [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]

    pieces = asyncio.run(streamed())
    assert len(pieces) > 2
    assert "".join(pieces) == result.output


def only_before_a_result(ctx: RunContext[None], tools: list[ToolDefinition]) -> list[ToolDefinition]:
    return tools if ctx.run_step <= 1 else []


def only_after_a_result(ctx: RunContext[None], tools: list[ToolDefinition]) -> list[ToolDefinition]:
    return tools if ctx.run_step > 1 else []


@pytest.mark.parametrize("output", OUTPUTS)
def test_structures(model: Model, output: str) -> None:
    output_type, kind = OUTPUTS[output]
    agent = Agent(model, output_type=output_type)
    found = agent.run_sync(FORECAST).output
    assert isinstance(found, kind)

    async def streamed() -> list[Any]:
        async with agent.run_stream(FORECAST) as stream:
            return [each async for each in stream.stream_output(debounce_by=None)]

    *_, last = asyncio.run(streamed())
    assert last == found


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_agent_with_a_structure(model: Model, output: str) -> None:
    """A step with the tool, its result, and the structure. With a native output the first step may skip the call."""
    capabilities = [PrepareTools(only_before_a_result), PrepareOutputTools(only_after_a_result)]
    output_type, kind = OUTPUTS[output]
    agent = Agent(model, output_type=output_type, capabilities=capabilities)

    @agent.tool_plain
    def weather(asked: Asked) -> str:
        """The weather in a city, for some days."""
        return report(asked.city, asked.days)

    result = agent.run_sync(FORECAST)
    assert isinstance(result.output, kind)
    parts = [part for message in result.all_messages() for part in message.parts]
    calls = [part for part in parts if isinstance(part, ToolCallPart) and part.tool_name == "weather"]
    returns = [part for part in parts if isinstance(part, ToolReturnPart) and part.tool_name == "weather"]
    assert calls or output != "tool"
    assert [part.tool_call_id for part in returns] == [part.tool_call_id for part in calls]
    assert all(str(part.content).endswith("sunny days.") for part in returns)


class CallThenAnswer(AbstractCapability[None]):
    """Requires calls in the first step, and forbids them after their results."""

    def get_model_settings(self) -> Callable[[RunContext[None]], ModelSettings]:
        def settings(ctx: RunContext[None]) -> ModelSettings:
            if ctx.run_step > 1:
                return ModelSettings(tool_choice="none", max_tokens=TOKENS)
            return ModelSettings(tool_choice="required", max_tokens=LIMIT, extra_body=self.body)

        return settings

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body


def test_an_agent_with_text(model: Model, ask: Ask, call_on: dict[str, Any]) -> None:
    is_chat = isinstance(model, OpenAIChatModel)  # the Responses API has no logit_bias
    agent = Agent(model, capabilities=[CallThenAnswer(call_on if is_chat else {})])
    seen = []

    @agent.tool_plain
    def weather(asked: Asked) -> str:
        """The weather in a city, for some days."""
        seen.append(asked)
        return report(asked.city, asked.days)

    result = agent.run_sync(FORECAST)
    assert result.output
    assert result.usage.requests == 2
    assert len(seen) >= (2 if is_chat else 1)
    (first, second) = (message for message in result.all_messages() if isinstance(message, ModelResponse))
    assert first.finish_reason == ("tool_call" if is_chat else "stop")  # a response is complete either way
    calls = [part for part in first.parts if isinstance(part, ToolCallPart)]
    assert len(calls) == len(seen) == len({call.tool_call_id for call in calls})
    question = ask(FORECAST, max_tokens=1)["usage"]["prompt_tokens"]
    assert second.usage.input_tokens > question + first.usage.output_tokens


def test_errors_have_the_classes_of_the_client(model: Model) -> None:
    with pytest.raises(ModelHTTPError) as long:
        Agent(model).run_sync(TOO_LONG)
    assert long.value.status_code == 400
    assert long.value.body["code"] == "context_length_exceeded"
    with pytest.raises(ModelHTTPError) as wrong:
        Agent(model).run_sync(QUESTION, model_settings=ModelSettings(temperature=3))
    assert wrong.value.body["param"] == "temperature"
