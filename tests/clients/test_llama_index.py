"""LlamaIndex: OpenAILike, and its agent."""

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

from clients.weather import FORECAST, LIMIT, QUESTION, TOKENS, TOO_LONG, Asked, Forecast, Served, report

pytestmark = pytest.mark.clients

Ask = Callable[..., dict[str, Any]]


def make(served: Served, **options: Any) -> OpenAILike:
    settings = {"is_chat_model": True, "is_function_calling_model": True, "context_window": 8192, "max_retries": 0}
    settings |= {"api_base": served.url, "api_key": served.key, "temperature": 0, "max_tokens": LIMIT}
    return OpenAILike(model=served.model, **(settings | options))


@pytest.fixture
def llm(served: Served) -> OpenAILike:
    return make(served)


def weather_tool(seen: list[Asked]) -> FunctionTool:
    def weather(city: str, days: int) -> str:
        """The weather in a city, for some days."""
        seen.append(Asked(city=city, days=days))
        return report(city, days)

    return FunctionTool.from_defaults(weather, fn_schema=Asked)


def test_a_chat_and_its_stream(served: Served, ask: Ask) -> None:
    llm, raw = make(served, max_tokens=TOKENS), ask(QUESTION, max_tokens=TOKENS)
    question = [ChatMessage(role="user", content=QUESTION)]
    answer = llm.chat(question)
    assert answer.message.content == raw["choices"][0]["message"]["content"]
    assert answer.raw.usage.total_tokens == raw["usage"]["total_tokens"]
    pieces = list(llm.stream_chat(question))
    assert len(pieces) > 3
    assert "".join(piece.delta for piece in pieces) == pieces[-1].message.content == answer.message.content
    assert llm.complete(QUESTION).text == answer.message.content


def test_a_completion(served: Served) -> None:
    llm = make(served, is_chat_model=False, is_function_calling_model=False, max_tokens=4)
    assert "Paris" in llm.complete("The capital of France is").text
    *_, last = llm.stream_complete("The capital of France is")
    assert last.text == llm.complete("The capital of France is").text


def test_calls(llm: OpenAILike, call_on: dict[str, Any]) -> None:
    seen: list[Asked] = []
    tool = weather_tool(seen)
    asked: dict[str, Any] = {
        "tools": [tool],
        "user_msg": FORECAST,
        "tool_required": True,
        "allow_parallel_tool_calls": True,
        "max_tokens": LIMIT,
        "extra_body": call_on,
    }
    answer = llm.chat_with_tools(**asked)
    calls = llm.get_tool_calls_from_response(answer)
    assert len({call.tool_id for call in calls}) == len(calls) >= 2
    assert all(Asked(**call.tool_kwargs) for call in calls)
    *_, last = llm.stream_chat_with_tools(**asked)
    assert [call.tool_kwargs for call in llm.get_tool_calls_from_response(last)] == [call.tool_kwargs for call in calls]
    told = llm.predict_and_call([tool], FORECAST, tool_required=True)
    assert told.response == report(seen[0].city, seen[0].days)


@pytest.mark.parametrize("by_format", [False, True])
def test_structures_and_their_streams(served: Served, by_format: bool) -> None:
    """As the arguments of a call, or by a response format."""
    llm = make(served, should_use_structured_outputs=by_format)
    template = PromptTemplate("What will the weather be in {city}?")
    question = [ChatMessage(role="user", content=FORECAST)]
    found = llm.structured_predict(Forecast, template, city="Paris")
    assert isinstance(found, Forecast)
    assert llm.as_structured_llm(Forecast).complete(FORECAST).raw == found
    if not by_format:  # the client streams with tool_choice auto, and a weak model would answer in text
        required = {"extra_body": {"tool_choice": "required"}}
        llm = make(served, should_use_structured_outputs=False, additional_kwargs=required)
    structured = llm.as_structured_llm(Forecast)

    async def streams() -> list[list[Any]]:
        predicted = await llm.astream_structured_predict(Forecast, template, city="Paris")
        answers = await structured.astream_chat(question)
        return [[piece async for piece in predicted], [answer.raw async for answer in answers]]

    pieces = [
        list(llm.stream_structured_predict(Forecast, template, city="Paris")),
        [answer.raw for answer in structured.stream_chat(question)],
        *asyncio.run(streams()),
    ]
    for each in pieces:
        assert len(each) > 3
        assert each[0] != found
        assert each[-1] == found
    assert asyncio.run(llm.astructured_predict(Forecast, template, city="Paris")) == found


def test_an_agent(llm: OpenAILike) -> None:
    """A call, its result, and a text; a model that would call on and on is asked for a text in the end."""
    seen: list[Asked] = []
    agent = FunctionAgent(
        tools=[weather_tool(seen)],
        llm=llm,
        system_prompt="Use the tools.",
        initial_tool_choice="weather",
        early_stopping_method="generate",
    )

    async def run() -> Any:
        return await agent.run(FORECAST, max_iterations=2)

    output = asyncio.run(run())
    assert seen
    assert output.response.content
    assert output.tool_calls[0].tool_output.content == report(seen[0].city, seen[0].days)


def test_errors_have_the_classes_of_the_client(served: Served, llm: OpenAILike) -> None:
    with pytest.raises(openai.BadRequestError) as long:
        llm.complete(TOO_LONG)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        make(served, api_key="another").complete(QUESTION)
