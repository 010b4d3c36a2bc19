"""LangChain: ChatOpenAI, and agents of `langchain`."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from clients.weather import FORECAST, LIMIT, QUESTION, TOKENS, TOO_LONG, Asked, Forecast, Served, report

pytestmark = pytest.mark.clients

Ask = Callable[..., dict[str, Any]]


@tool(args_schema=Asked)
def weather(city: str, days: int) -> str:
    """The weather in a city, for some days."""
    return report(city, days)


@pytest.fixture(scope="module", params=["chat", "responses"])
def chat(served: Served, request: pytest.FixtureRequest) -> ChatOpenAI:
    """ChatOpenAI over both of OpenAI's APIs."""
    return ChatOpenAI(
        base_url=served.url,
        api_key=served.key,
        model=served.model,
        temperature=0,
        max_retries=0,
        max_tokens=LIMIT,
        stream_usage=True,
        use_responses_api=request.param == "responses",
    )


def test_a_chat_and_its_stream(chat: ChatOpenAI, ask: Ask) -> None:
    raw = ask(QUESTION, max_tokens=TOKENS)
    answer = chat.invoke(QUESTION, max_tokens=TOKENS)
    assert answer.text == raw["choices"][0]["message"]["content"]
    assert answer.usage_metadata["input_tokens"] == raw["usage"]["prompt_tokens"]
    assert answer.usage_metadata["output_tokens"] == raw["usage"]["completion_tokens"]
    chunks = list(chat.stream(QUESTION, max_tokens=TOKENS))
    assert len(chunks) > 3
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.text == answer.text
    assert whole.usage_metadata["total_tokens"] == answer.usage_metadata["total_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_calls_and_their_results(chat: ChatOpenAI, ask: Ask, call_on: dict[str, Any], stream: bool) -> None:
    bound = chat.bind_tools([weather], tool_choice="required")
    more: dict[str, Any] = {"extra_body": call_on}
    if chat.use_responses_api:
        more = {}  # it has no logit_bias
    asked = [HumanMessage(FORECAST)]
    if stream:
        chunks = list(bound.stream(asked, **more))
        answer: AIMessage = chunks[0]
        for chunk in chunks[1:]:
            answer += chunk
    else:
        answer = bound.invoke(asked, **more)
    assert not answer.invalid_tool_calls
    assert len(answer.tool_calls) >= (1 if chat.use_responses_api else 2)
    assert len({call["id"] for call in answer.tool_calls}) == len(answer.tool_calls)
    assert all(Asked(**call["args"]) for call in answer.tool_calls)
    results = [weather.invoke(call) for call in answer.tool_calls]
    assert all(isinstance(result, ToolMessage) for result in results)
    last = chat.bind_tools([weather], tool_choice="none").invoke([*asked, answer, *results], max_tokens=TOKENS)
    assert last.text
    assert not last.tool_calls
    question = ask(FORECAST, max_tokens=1)["usage"]
    assert last.usage_metadata["input_tokens"] > question["prompt_tokens"] + answer.usage_metadata["output_tokens"]


@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
def test_structures(chat: ChatOpenAI, method: Any) -> None:
    if method == "json_mode":  # constrains to JSON, not to the schema
        found = chat.with_structured_output(None, method=method).invoke(f"{FORECAST} Answer in JSON.")
        assert isinstance(found, dict)
        return
    found = chat.with_structured_output(Forecast, method=method).invoke(FORECAST)
    assert isinstance(found, Forecast)
    both = chat.with_structured_output(Forecast, method=method, include_raw=True).invoke(FORECAST)
    assert both["parsed"] == found
    assert both["parsing_error"] is None
    *_, streamed = chat.with_structured_output(Forecast, method=method).stream(FORECAST)
    assert streamed == found


@wrap_model_call
def call_then_answer(request: Any, handler: Any) -> Any:
    """Require a call in the first step, and none after its result."""
    has_result = isinstance(request.messages[-1], ToolMessage)
    return handler(request.override(tool_choice="none" if has_result else "required"))


def test_an_agent(chat: ChatOpenAI) -> None:
    agent = create_agent(chat, [weather], system_prompt="Use the tools.", middleware=[call_then_answer])
    messages = agent.invoke({"messages": [HumanMessage(FORECAST)]})["messages"]
    calls = messages[1].tool_calls
    assert calls
    results = [message for message in messages if isinstance(message, ToolMessage)]
    assert [result.tool_call_id for result in results] == [call["id"] for call in calls]
    assert [result.content for result in results] == [report(**call["args"]) for call in calls]
    assert isinstance(messages[-1], AIMessage)
    assert messages[-1].text


@pytest.mark.parametrize("strategy", [ProviderStrategy, ToolStrategy])
def test_an_agent_with_a_structure(chat: ChatOpenAI, strategy: Any) -> None:
    """ProviderStrategy sends tools with a response format, ToolStrategy the structure as one more tool."""

    @wrap_model_call
    def call_then_tell(request: Any, handler: Any) -> Any:
        has_result = isinstance(request.messages[-1], ToolMessage)
        return handler(request.override(tools=[] if has_result else request.tools, tool_choice=None))

    agent = create_agent(chat, [weather], response_format=strategy(Forecast), middleware=[call_then_tell])
    state = agent.invoke({"messages": [HumanMessage(FORECAST)]}, {"recursion_limit": 10})
    assert isinstance(state["structured_response"], Forecast)


def test_errors_have_the_classes_of_the_client(chat: ChatOpenAI) -> None:
    with pytest.raises(ContextOverflowError):
        chat.invoke(TOO_LONG)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        chat.invoke(QUESTION, temperature=3)
    with pytest.raises(openai.NotFoundError):
        chat.invoke(QUESTION, model="another")
