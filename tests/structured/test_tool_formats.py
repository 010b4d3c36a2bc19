"""Tool calls are read in every family's format, as a whole and in pieces; nothing else is taken for a call."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from faquant.errors import UsageError
from faquant.structured.tools.calls import ToolCalls
from faquant.structured.tools.conversation import Conversation
from faquant.structured.tools.formats import detect
from faquant.structured.tools.parser import CallParser, Content, opening_of
from faquant.text.tokenizer import Tokenizer
from oracles.chat_templates import TEMPLATES
from oracles.tokenizer_kinds import byte_level, write_model
from oracles.tool_calls import TOOLS, WEATHER, read

ARGUMENTS = {"city": 'a "b" {é} <tool_call> </tool_call> [TOOL_CALLS] ), (', "days": 3, "dry": True}
JSON = json.dumps(ARGUMENTS, ensure_ascii=False)
PYTHON = f"weather(city={json.dumps(ARGUMENTS['city'], ensure_ascii=False)}, days=3, dry=True)"
ONE, BOTH = [("weather", ARGUMENTS)], [("weather", ARGUMENTS), ("ping", {})]
# Answers as the families' models write them: the format, the text, its content, its calls.
ANSWERS = [
    (
        "hermes",
        f'Well. <tool_call>\n{{"name": "weather", "arguments": {JSON}}}\n</tool_call>\n<tool_call>\n'
        '{"name": "ping", "arguments": {}}\n</tool_call>',
        "Well. ",
        BOTH,
    ),
    ("hermes", "if a <tool_cal then <tool_ca", "if a <tool_cal then <tool_ca", []),
    ("hermes", '{"name": "weather", "arguments": {}}', '{"name": "weather", "arguments": {}}', []),
    ("llama3_json", f'<|python_tag|>{{"name": "weather", "parameters": {JSON}}}', "", ONE),
    ("llama3_json", f'Hm.<|python_tag|>{{"name": "weather", "parameters": {JSON}}}', "Hm.", ONE),
    ("llama3_json", f'\n{{ "name" : "weather", "parameters": {JSON}}}', "", ONE),
    ("llama3_json", f'{{"type": "function", "name": "weather", "parameters": {JSON}}}', "", ONE),
    ("llama3_json", '{"name": "Bob", "age": 7}', '{"name": "Bob", "age": 7}', []),
    ("llama3_json", '{"name": "weath', '{"name": "weath', []),
    ("llama3_json", 'So {"name": "weather"', 'So {"name": "weather"', []),
    (
        "mistral",
        f'[TOOL_CALLS] [{{"name": "weather", "arguments": {JSON}}}, {{"name": "ping", "arguments": {{}}}}]',
        "",
        BOTH,
    ),
    ("mistral", f'[TOOL_CALLS][{{"name": "weather", "arguments": {JSON}}}]', "", ONE),
    ("mistral", "[TOOL", "[TOOL", []),
    ("pythonic", f"[{PYTHON}, ping()]", "", BOTH),
    ("pythonic", f" [{PYTHON}]", "", ONE),
    ("pythonic", "[1, 2]", "[1, 2]", []),
    ("pythonic", "[weather", "[weather", []),
]


class TestReading:
    @pytest.mark.parametrize(
        ("format", "text", "content"),
        [
            ("hermes", "Well. <tool_ca", "Well. "),
            ("hermes", "1 <", "1 <"),
            ("llama3_json", '{"name": "wea', ""),
            ("pythonic", "[weath", ""),
            ("mistral", "Well. [TOOL_C", "Well. "),
        ],
    )
    def test_a_beginning_that_the_limit_cuts_off_is_not_content(self, format: str, text: str, content: str) -> None:
        parser = CallParser(ToolCalls(TOOLS, format))
        pieces = [piece for letter in text for piece in parser.push(letter)] + parser.flush(cut=True)
        assert "".join(piece.text for piece in pieces if isinstance(piece, Content)) == content

    @pytest.mark.parametrize(("format", "text", "content", "wanted"), ANSWERS)
    def test_an_answer_whole_and_letter_by_letter(
        self, format: str, text: str, content: str, wanted: list[tuple[str, Any]]
    ) -> None:
        calls = ToolCalls(TOOLS, format)
        whole = read(calls, text)
        assert whole == read(calls, *text)
        assert whole[0] == content
        assert [(name, json.loads(arguments)) for name, arguments in whole[1]] == wanted
        assert whole[2] == bool(wanted)

    @pytest.mark.parametrize(("format", "text", "content", "wanted"), ANSWERS)
    def test_no_markup_is_content_wherever_the_answer_is_cut_off(
        self, format: str, text: str, content: str, wanted: list[tuple[str, Any]]
    ) -> None:
        calls = ToolCalls(TOOLS, format)
        begin = (
            next(n for n in range(len(text) + 1) if opening_of(calls).split(text[:n], True).calls is not None)
            if (wanted)
            else len(text) + 1
        )
        for length in range(len(text)):
            got, found, _ = read(calls, *text[:length])
            # Until a call has certainly begun, everything is content; after that, the text before the calls.
            assert got == (text[:length] if length < begin else content)
            for (name, arguments), (right, complete) in zip(found, wanted, strict=False):
                assert name == right
                assert json.dumps(complete, ensure_ascii=False).startswith(arguments)

    def test_forced_calls_need_no_tag(self) -> None:
        text = f'{{"name": "weather", "arguments": {JSON}}}'
        assert read(ToolCalls(TOOLS, "hermes", forced=True), *text)[1] == [("weather", JSON)]


class TestFormats:
    @pytest.mark.parametrize(
        ("template", "format"),
        [("qwen", "hermes"), ("llama", "llama3_json"), ("mistral_tools", "mistral"), ("pythonic", "pythonic")],
    )
    def test_are_detected_in_templates(self, template: str, format: str) -> None:
        assert detect(TEMPLATES[template]) == format

    @pytest.mark.parametrize(
        "template",
        [
            "{{ tools }}",
            "<tool_call>\n<function=x>",
            "<tool_call>name\n<arg_key>",
            "[TOOL_CALLS]name[ARGS]",
            """{{ '{"name": "' + tool.name + '", ' }}\n{{ '"parameters": ' }}\n<function_call> {"name": """,
        ],
    )
    def test_others_are_unknown(self, template: str) -> None:
        assert detect(template) is None

    def test_a_template_without_tools_gets_the_built_in_prompt(self, tmp_path: Path) -> None:
        tokenizer = tokenizer_of(tmp_path, {"chat_template": TEMPLATES["chatml"]})
        conversation = Conversation(tokenizer)
        assert conversation.format == "hermes"
        assert "built-in prompt" in conversation.description
        call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
        talk = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "tool_calls": [call, call]},
            {"role": "tool", "tool_call_id": "a", "content": "sun"},
            {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "rain"}]},
        ]
        tool = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
        text = tokenizer.decode(conversation.encode(talk, [tool]), False)
        written = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
        assert text.startswith("<|im_start|>system\nBe brief.\n\nYou can call")
        assert f"<tools>\n{json.dumps(tool)}\n</tools>" in text
        assert text.endswith(
            f"<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\n{written}\n{written}<|im_end|>\n"
            "<|im_start|>user\nThe function returned: sun\nThe function returned: rain\n"
            "Now answer my question with that."
            "<|im_end|>\n<|im_start|>assistant\n"
        )
        with pytest.raises(UsageError, match="no section for tools"):
            Conversation(tokenizer, "mistral")

    def test_mistral_ids_have_nine_characters(self, tmp_path: Path) -> None:
        tokenizer = tokenizer_of(tmp_path, {"chat_template": TEMPLATES["mistral_tools"]})
        call = {"id": "call_0123456789", "type": "function", "function": {"name": "weather", "arguments": {}}}
        talk = [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_0123456789", "content": "sun"},
        ]
        text = tokenizer.decode(Conversation(tokenizer).encode(talk), False)
        ids = re.findall(r'"(?:id|call_id)": "([a-zA-Z0-9]{9})"', text)
        assert len(ids) == 2
        assert len(set(ids)) == 1

    def test_the_flag_overrides_the_template(self, tmp_path: Path) -> None:
        tokenizer = tokenizer_of(tmp_path, {"chat_template": "{{ tools }}"})
        assert Conversation(tokenizer).format is None
        assert Conversation(tokenizer, "pythonic").format == "pythonic"


def tokenizer_of(path: Path, config: Any = None) -> Tokenizer:
    return Tokenizer.from_directory(write_model(path, byte_level(), config))
