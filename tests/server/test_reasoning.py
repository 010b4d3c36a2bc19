"""Reasoning in the API: apart from content and calls, whole and streamed, and counted."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema
import pytest
from torch import Tensor

from faquant.engine.scheduler import Work
from faquant.errors import UsageError
from faquant.server.config import ServerConfig
from faquant.text.tokenizer import Tokenizer
from oracles.tiny_server import NAME, BytesEngine, TinyServer
from oracles.tiny_tokenizer import TEMPLATE, write_tokenizer

USER: Any = {"role": "user", "content": "Weather?"}
PING: Any = {"type": "function", "function": {"name": "ping"}}
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}


@cache
def tokenizer(template: str) -> Tokenizer:
    with TemporaryDirectory() as directory:
        write_tokenizer(Path(directory))
        file = Path(directory, "tokenizer_config.json")
        file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
        return Tokenizer.from_directory(Path(directory))


class ThinkingEngine(BytesEngine):
    """Answers begin with a given text, and end after it if they can. opened: the template opens the reasoning."""

    def __init__(self, led: str, opened: bool) -> None:
        super().__init__(pages=40)
        opening = "<think>\n" if opened else "{% if closed %}<think>\n\n</think>\n\n{% endif %}"
        self.tokenizer = tokenizer(TEMPLATE.replace("assistant\n{% endif %}", f"assistant\n{opening}{{% endif %}}"))
        self.led = self.tokenizer.encode(led)
        self.end = self.tokenizer.eos_token_ids[0]

    def _run(self, work: Sequence[Work]) -> Tensor:
        logits, row = super()._run(work), 0
        for item in work:
            if item.decodes:
                place = len(item.request.answer_ids)
                logits[row, self.led[place] if place < len(self.led) else self.end] += 1000
                row += 1 + len(item.draft)
        return logits


def ask(server: TinyServer, **asked: Any) -> Any:
    """The choice, which a stream has too, and the usage."""
    wanted = {"model": NAME, "messages": [USER], "max_tokens": 300, "seed": 1, **asked}
    with server.client() as client:
        whole = client.chat.completions.create(**wanted)
        chunks = list(client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True}))
    message = whole.choices[0].message
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    for name in ("reasoning_content", "content"):
        streamed = "".join(getattr(delta, name, None) or "" for delta in deltas)
        assert streamed == (getattr(message, name, None) or "")
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.completion_tokens_details == whole.usage.completion_tokens_details
    return whole.choices[0], whole.usage


@pytest.mark.parametrize("opened", [True, False])
def test_text(opened: bool) -> None:
    begin = "" if opened else "<think>\n"
    with TinyServer(ThinkingEngine(f"{begin}Hm, 7.\n</think>\n\nYes.", opened)) as server:
        choice, usage = ask(server)
        assert (choice.message.reasoning_content, choice.message.content) == ("Hm, 7.", "Yes.")
        assert choice.finish_reason == "stop"
        assert usage.completion_tokens == len(begin) + len("Hm, 7.\n</think>\n\nYes.")
        assert usage.completion_tokens_details.reasoning_tokens == len(begin) + len("Hm, 7.\n</think>")
        choice, usage = ask(server, max_tokens=len(begin) + 4)
        assert (choice.message.reasoning_content, choice.message.content) == ("Hm,", "")
        assert choice.finish_reason == "length"
        assert usage.completion_tokens_details.reasoning_tokens == usage.completion_tokens


def test_an_answer_without_reasoning_has_no_such_field() -> None:
    with TinyServer(ThinkingEngine("Yes.", False)) as server:
        choice, usage = ask(server)
        assert choice.message.content == "Yes."
        assert "reasoning_content" not in choice.message.model_dump()
        assert usage.completion_tokens_details.reasoning_tokens == 0


def test_a_closed_part_leaves_the_text_alone() -> None:
    with TinyServer(ThinkingEngine("<think>Yes.", False)) as server:
        choice, _ = ask(server, extra_body={"chat_template_kwargs": {"closed": True}})
        assert choice.message.content == "<think>Yes."


@pytest.mark.parametrize("opened", [True, False])
def test_calls(opened: bool) -> None:
    begin = "" if opened else "<think>"
    call = '<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>'
    with TinyServer(ThinkingEngine(f"{begin}Not {call} yet.</think>\n{call}\n", opened)) as server:
        choice, usage = ask(server, tools=[PING])
        assert choice.message.reasoning_content == f"Not {call} yet."
        assert choice.message.content is None
        assert [one.function.name for one in choice.message.tool_calls] == ["ping"]
        assert choice.finish_reason == "tool_calls"
        assert usage.completion_tokens_details.reasoning_tokens > len(call)


@pytest.mark.parametrize("opened", [True, False])
def test_structure_never_holds_reasoning(opened: bool) -> None:
    with TinyServer(ThinkingEngine('Hm {"a"</think>\n', opened)) as server:
        for asked in ({"response_format": FORM}, {"tools": [PING], "tool_choice": "required"}):
            for limit in (60, 65, 300):
                choice, usage = ask(server, **asked, max_tokens=limit)
                if "tools" in asked:
                    assert [one.function.name for one in choice.message.tool_calls] == ["ping"]
                else:
                    jsonschema.validate(json.loads(choice.message.content), SCHEMA)
                assert getattr(choice.message, "reasoning_content", None) == ('Hm {"a"' if opened else None)
                assert usage.completion_tokens_details.reasoning_tokens == (len('Hm {"a"</think>') if opened else 0)


def test_the_flag() -> None:
    with TinyServer(ThinkingEngine("Hm.</think>Yes.", False), reasoning_parser="deepseek_r1") as server:
        choice, _ = ask(server)
        assert (choice.message.reasoning_content, choice.message.content) == ("Hm.", "Yes.")
    with TinyServer(ThinkingEngine("<think>Hm.</think>Yes.", False), reasoning_parser="none") as server:
        choice, _ = ask(server)
        assert choice.message.content == "<think>Hm.</think>Yes."
    with pytest.raises(UsageError, match="auto, none or one of qwen3, deepseek_r1"):
        ServerConfig(NAME, reasoning_parser="r1")


def test_a_response_has_its_reasoning_as_an_item() -> None:
    with TinyServer(ThinkingEngine("<think>\nHm, 7.\n</think>\n\nYes.", False)) as server, server.client() as client:
        asked: Any = {"model": NAME, "input": "Weather?", "max_output_tokens": 300}
        got: Any = client.responses.create(**asked)
        thought, message = got.output
        assert (thought.type, thought.content[0].text, thought.summary) == ("reasoning", "Hm, 7.", [])
        assert message.content[0].text == got.output_text == "Yes."
        assert got.usage.output_tokens_details.reasoning_tokens == len("<think>\nHm, 7.\n</think>")
        events: list[Any] = list(client.responses.create(**asked, stream=True))
        pieces = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
        assert "".join(pieces) == "Hm, 7."
        of_thought = [event.type for event in events if getattr(event, "item_id", "").startswith("rs_")]
        assert of_thought[0] == "response.content_part.added"
        assert of_thought[-2:] == ["response.reasoning_text.done", "response.content_part.done"]
        assert [item.type for item in events[-1].response.output] == ["reasoning", "message"]
        # The template sees it again, as it does in a conversation that is sent back.
        more: Any = {**asked, "input": "And?", "max_output_tokens": 3}
        continued = client.responses.create(**more, previous_response_id=got.id)
        sent: Any = [{"role": "user", "content": "Weather?"}, *got.output, {"role": "user", "content": "And?"}]
        whole = client.responses.create(**{**more, "input": sent})
        assert continued.usage is not None
        assert whole.usage is not None
        assert continued.usage.input_tokens == whole.usage.input_tokens


@pytest.mark.parametrize("led", ['Hm.</think>{"a": 2}', 'Hm.</think><tool_call>\n{"name": "ping"'])
def test_calls_or_a_form_after_opened_reasoning(led: str) -> None:
    with TinyServer(ThinkingEngine(led, True)) as server:
        choice, _ = ask(server, tools=[PING], response_format=FORM)
        assert choice.message.reasoning_content == "Hm."
        if "tool_call" in led:
            assert [call.function.name for call in choice.message.tool_calls] == ["ping"]
        else:
            assert json.loads(choice.message.content) == {"a": 2}
        short, _ = ask(server, tools=[PING], response_format=FORM, max_tokens=len('</think>{"a":1}') + 9)
        assert json.loads(short.message.content or "")["a"] in (1, 2)
