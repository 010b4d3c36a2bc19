"""Tools together with a response format: calls, or an answer of that format."""

import json
from collections.abc import Sequence
from typing import Any

import jsonschema
import openai
import pytest
from torch import Tensor

from faquant.engine.scheduler import Work
from faquant.structured.structured_output import StructuredOutput
from faquant.structured.tools.calls import Tool, ToolCalls
from faquant.structured.tools.formats import FORMATS
from faquant.structured.tools.parser import CallParser, Content, parse
from oracles.tiny_server import NAME, BytesEngine, TinyServer, tokenizer

SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
ANSWER: Any = {
    "type": "object",
    "properties": {"text": {"type": "string", "maxLength": 40}},
    "required": ["text"],
    "additionalProperties": False,
}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": ANSWER}}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
ASKED: Any = {
    "model": NAME,
    "messages": [{"role": "user", "content": "Weather?"}],
    "tools": [WEATHER],
    "max_tokens": 200,
    "response_format": FORM,
}


class LedEngine(BytesEngine):
    """A server whose answers prefer to begin with a given text."""

    led = ""

    def _run(self, work: Sequence[Work]) -> Tensor:
        logits, row = super()._run(work), 0
        led = tokenizer().encode(self.led)
        for item in work:
            if item.decodes:
                place = len(item.request.answer_ids)
                if place < len(led):
                    logits[row, led[place]] += 1000
                row += 1 + len(item.draft)
        return logits


def kind_of(choice: Any) -> str:
    """Whether the answer has calls or follows the format; it is checked for both."""
    if choice.message.tool_calls:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        for call in choice.message.tool_calls:
            jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
        return "calls"
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(choice.message.content or ""), ANSWER)
    return "answer"


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_the_first_tokens_decide(form: str) -> None:
    engine = LedEngine(pages=40)
    with TinyServer(engine, tool_call_parser="auto") as server, server.client() as client:
        server.service.conversation.format = form  # the tokenizer's own is hermes
        calls = ToolCalls((Tool("weather", SCHEMA),), form, forced=True)
        for led, kind in (((calls.tag or "") + calls.beginnings()[0], "calls"), ('{"text"', "answer")):
            engine.led = led
            for seed in range(3):
                whole = client.chat.completions.create(**ASKED, seed=seed).choices[0]
                assert kind_of(whole) == kind
                with client.chat.completions.stream(**ASKED, seed=seed) as stream:
                    streamed = stream.get_final_completion().choices[0]
                assert kind_of(streamed) == kind
                assert streamed.message.content == whole.message.content


def test_tags_within_the_answer_are_text() -> None:
    engine = LedEngine(pages=40)
    engine.led = '{"text": "<tool_call>\\n{'
    with TinyServer(engine) as server, server.client() as client:
        got = client.chat.completions.create(**ASKED, seed=1).choices[0]
        assert kind_of(got) == "answer"
        assert json.loads(got.message.content or "")["text"].startswith("<tool_call>\n{")
        pieces = [c.choices[0].delta for c in client.chat.completions.create(**ASKED, seed=1, stream=True)]
        assert "".join(piece.content or "" for piece in pieces) == got.message.content


def test_a_model_that_prefers_text_writes_neither_more_nor_less(client: openai.OpenAI) -> None:
    kinds = {kind_of(choice) for choice in client.chat.completions.create(**ASKED, n=24, seed=3).choices}
    assert kinds <= {"calls", "answer"}
    forced = client.chat.completions.create(**ASKED, tool_choice="required", seed=1).choices[0]
    assert kind_of(forced) == "calls"
    any_object = client.chat.completions.create(**{**ASKED, "response_format": {"type": "json_object"}}, seed=4)
    message = any_object.choices[0].message
    assert message.tool_calls or isinstance(json.loads(message.content or ""), dict)


def test_a_limit_that_only_one_of_them_fits_leaves_that_one(client: openai.OpenAI) -> None:
    short = {**ASKED, "max_tokens": len('{"text": ""}')}
    assert {kind_of(choice) for choice in client.chat.completions.create(**short, n=8, seed=1).choices} == {"answer"}
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.chat.completions.create(**{**ASKED, "max_tokens": 3})


def test_stop_strings_end_answers_but_not_calls() -> None:
    engine = LedEngine(pages=40)
    with TinyServer(engine) as server, server.client() as client:
        engine.led = "<tool_call>"
        assert kind_of(client.chat.completions.create(**ASKED, stop=["{", "city"], seed=1).choices[0]) == "calls"
        engine.led = '{"text": "a'
        got = client.chat.completions.create(**ASKED, stop=["text"], seed=1).choices[0]
        assert (got.message.content, got.finish_reason) == ('{"', "stop")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}}, "response"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"not": {}}}}]}, "tools"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 5}}}}, "response"),
    ],
)
def test_a_refusal_names_the_one_at_fault(client: openai.OpenAI, more: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**ASKED, **more})
    assert (caught.value.param or "").startswith(param)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("form", sorted(FORMATS))
def test_answers_are_read_in_pieces_of_any_size(form: str, size: int) -> None:
    calls = ToolCalls((Tool("weather", SCHEMA),), form)
    like_a_call = ['{"name": "weather", "arguments": {"city": "x", "days": 1}}'] if calls.style.tagged else []
    for text in (
        *like_a_call,
        '{"text": "<tool_call>[TOOL_CALLS]<|python_tag|>[weather("}',
        '{"name": "Bob"}',
        "{}",
        "[]",
        '"<tool_"',
    ):
        parser = CallParser(calls, is_formed=True)
        pieces = [piece for at in range(0, len(text), size) for piece in parser.push(text[at : at + size])]
        pieces += parser.flush()
        assert "".join(piece.text for piece in pieces if isinstance(piece, Content)) == text
        assert parse(calls, text, cut=False, is_formed=True) == (text, (), False)


def test_only_calls_that_are_not_required_have_an_alternative() -> None:
    calls = ToolCalls((Tool("weather", SCHEMA),), "hermes")
    answer, forced = StructuredOutput(json_schema=ANSWER, tool_calls=calls).parts
    assert answer == StructuredOutput(json_schema=ANSWER)
    assert forced.tool_calls is not None
    assert forced.tool_calls.forced
