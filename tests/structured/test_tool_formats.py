"""Tool calls are read in every family's format, as a whole and in pieces; nothing else is taken for a call."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from faquant.errors import UsageError
from faquant.structured.tools.arguments import write_calls
from faquant.structured.tools.calls import ToolCalls
from faquant.structured.tools.conversation import Conversation
from faquant.structured.tools.formats import FORMATS
from faquant.structured.tools.parser import CallParser, Content, opening_of
from faquant.structured.tools.probe import Render, recognize
from faquant.structured.tools.xml_parameters import XmlArguments
from faquant.text.chat_template import ChatTemplate
from faquant.text.tokenizer import Tokenizer
from oracles.chat_templates import TEMPLATES
from oracles.tokenizer_kinds import byte_level, write_model
from oracles.tool_calls import TOOLS, WEATHER, read

ARGUMENTS = {"city": 'a "b" {é} <tool_call> </tool_call> [TOOL_CALLS] ), (', "days": 3, "dry": True}
JSON = json.dumps(ARGUMENTS, ensure_ascii=False)
PYTHON = f"weather(city={json.dumps(ARGUMENTS['city'], ensure_ascii=False)}, days=3, dry=True)"
XML = (
    f"<function=weather>\n<parameter=city>\n{ARGUMENTS['city']}\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    "<parameter=dry>\nTrue\n</parameter>\n</function>"
)
XML_PING = "<function=ping>\n</function>"
R1_BEGIN = "<｜tool▁calls▁begin｜>"
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
    ("hermes", 'So {"name": "weather", "arguments": {}}', 'So {"name": "weather", "arguments": {}}', []),
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
    ("hermes", f'```json\n{{\n  "name": "weather", "arguments": {JSON}}}\n```', "", ONE),
    ("hermes", f'<tools>{{"name": "weather", "arguments": {JSON}}}</tools>', "", ONE),
    ("hermes", f'{{"name": "weather", "arguments": {JSON}}}', "", ONE),
    ("hermes", '```json\n{"name": "Bob"}\n```', '```json\n{"name": "Bob"}\n```', []),
    ("hermes", 'So <tools>{"name": "weather"', 'So <tools>{"name": "weather"', []),
    (
        "qwen2_5_coder",
        f'<tools>\n{{"name": "weather", "arguments": {JSON}}}\n</tools>\n<tools>\n'
        '{"name": "ping", "arguments": {}}\n</tools>',
        "",
        BOTH,
    ),
    ("qwen2_5_coder", f'Well:\n<tools>\n{{"name": "weather", "arguments": {JSON}}}\n</tools>', "Well:\n", ONE),
    ("qwen2_5_coder", f'```json\n{{"name": "weather", "arguments": {JSON}}}\n```', "", ONE),
    ("mistral_v13", f"[TOOL_CALLS]weather[ARGS]{JSON}[TOOL_CALLS]ping[ARGS]{{}}", "", BOTH),
    ("mistral_v13", f"Well. [TOOL_CALLS]weather[ARGS]{JSON}", "Well. ", ONE),
    (
        "mistral_v11",
        f"[TOOL_CALLS]weather[CALL_ID]aB3456789[ARGS]{JSON}[TOOL_CALLS]ping[CALL_ID]123456789[ARGS]{{}}",
        "",
        BOTH,
    ),
    (
        "llama_nemotron_json",
        f'Well. <TOOLCALL>[{{"name": "weather", "arguments": {JSON}}}, '
        '{"name": "ping", "arguments": {}}]</TOOLCALL>',
        "Well. ",
        BOTH,
    ),
    ("xlam", f'[{{"name": "weather", "arguments": {JSON}}}, {{"name": "ping", "arguments": {{}}}}]', "", BOTH),
    ("xlam", f'[ {{ "name": "weather", "arguments": {JSON}}}]', "", ONE),
    ("xlam", '[{"name": "Bob"}]', '[{"name": "Bob"}]', []),
    (
        "deepseek_r1",
        f"Well. {R1_BEGIN}<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{JSON}\n```<｜tool▁call▁end｜>\n"
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>ping\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "Well. ",
        BOTH,
    ),
    ("deepseek_r1", R1_BEGIN[:-1], R1_BEGIN[:-1], []),
    ("qwen3_coder", f"Well.\n<tool_call>\n{XML}\n</tool_call>\n<tool_call>\n{XML_PING}\n</tool_call>", "Well.\n", BOTH),
    ("qwen3_coder", XML, "", ONE),
    ("qwen3_coder", "#include <functional> // <function", "#include <functional> // <function", []),
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
            ("deepseek_r1", "Well. <｜tool▁ca", "Well. "),
            ("qwen3_coder", "Well. <function", "Well. "),
            ("llama_nemotron_json", "Well. <TOOL", "Well. "),
            ("qwen2_5_coder", "Well. <too", "Well. "),
            ("mistral_v13", "Well. [TOOL_C", "Well. "),
            ("mistral_v11", "Well. [TOOL_C", "Well. "),
            ("xlam", '[{"name": "wea', ""),
        ],
    )
    def test_a_beginning_that_the_limit_cuts_off_is_not_content(self, format: str, text: str, content: str) -> None:
        parser = CallParser(ToolCalls(TOOLS, format))
        pieces = [piece for letter in text for piece in parser.push(letter)] + parser.flush(cut=True)
        assert "".join(piece.text for piece in pieces if isinstance(piece, Content)) == content

    @pytest.mark.parametrize(("format", "text", "content", "wanted"), ANSWERS)
    def test_an_answer_whole_and_in_pieces_of_every_length(
        self, format: str, text: str, content: str, wanted: list[tuple[str, Any]]
    ) -> None:
        calls = ToolCalls(TOOLS, format)
        whole = read(calls, text)
        for length in range(1, len(text)):
            assert whole == read(calls, *(text[place : place + length] for place in range(0, len(text), length)))
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
        [
            ("qwen", "hermes"),
            ("qwen3", "hermes"),
            ("llama", "llama3_json"),
            ("mistral_tools", "mistral"),
            *((name, name) for name in FORMATS.keys() & TEMPLATES.keys() - {"mistral"}),
            ("nemotron", "llama_nemotron_json"),
        ],
    )
    def test_are_recognized_by_the_calls_that_a_template_writes(self, template: str, format: str) -> None:
        found = recognize(rendering(TEMPLATES[template]))
        assert found.format == format
        assert found.writes_calls
        assert found.writes_results

    def test_are_recognized_by_the_example_if_a_template_writes_no_calls(self) -> None:
        found = recognize(rendering(TEMPLATES["smollm3"]))
        assert (found.format, found.takes_tools, found.writes_calls) == ("hermes", True, False)
        for format, style in FORMATS.items():
            example = write_calls(style, [("a_tool", {"a": "b"})])
            found = recognize(
                rendering("{{ messages[0].content }}{{ tools | tojson if tools }}" + f"Example: {example}")
            )
            assert (found.format, found.writes_calls) == (format, False)

    @pytest.mark.parametrize(
        "written",
        [
            "",
            "<tool_calls>[CALL]</tool_calls>",
            "<tool_calls>\n[CALL]\n</tool_calls>",
            "<tool_call>[CALL]</tool_call>",
            "<tool_call>CALL",
            "<function_call> CALL",
            "Calls: [CALL]",
            "<tool_call>NAME\n<arg_key>place</arg_key>\n<arg_value>Uppsala</arg_value></tool_call>",
            "[TOOL_CALLS]NAME ARGUMENTS",
            "[TOOL_CALLS] CALL",
            "NAME: ARGUMENTS",
        ],
    )
    def test_others_are_unknown_whatever_they_mention(self, written: str) -> None:
        call = '{"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}'
        text = written.replace("CALL]", f"{call}]").replace(" CALL", f" {call}").replace(">CALL", f">{call}")
        text = text.replace("NAME", "{{ call.name }}").replace("ARGUMENTS", "{{ call.arguments | tojson }}")
        source = (
            "Never write <tool_call>, [TOOL_CALLS], <|python_tag|>, <function= or [ARGS].\n"
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
            "{% for c in m.tool_calls or [] %}{% set call = c.function %}" + text + "{% endfor %}</s>{% endfor %}"
            "{{ tools | tojson if tools }}{% if add_generation_prompt %}<assistant>{% endif %}"
        )
        found = recognize(rendering(source))
        assert found.format is None
        assert found.takes_tools
        assert found.writes_calls == bool(written)

    @pytest.mark.parametrize("name", sorted(TEMPLATES))
    @pytest.mark.parametrize("format", list(FORMATS))
    def test_histories_hold_calls_as_the_model_writes_them(self, name: str, format: str, tmp_path: Path) -> None:
        tokenizer = tokenizer_of(tmp_path, {"chat_template": TEMPLATES[name]})
        conversation = Conversation(tokenizer)
        if conversation.format != format or name == "mistral":  # that one does not take a system message
            return
        call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
        talk = [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sun and rain"},
        ]
        tool = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
        text = tokenizer.decode(conversation.encode(talk, [tool]), False)
        assert '"city"' in text or "city</name>" in text or "'city'" in text
        assert "sun and rain" in text
        begin = text.index("Weather?")
        assert ("Let me see." in text[begin:]) == (name not in ("llama", "mistral_tools", "pythonic", "xlam"))
        turn = text[begin:].partition(
            "<|im_start|>assistant\n" if "<|im_start|>" in text else "assistant<|end_header_id|>"
        )[2]
        parser_calls = ToolCalls(TOOLS, format, forced=True)
        got = read(parser_calls, turn or text[begin:])[1]
        assert [(one, json.loads(arguments)) for one, arguments in got[:1]] == ONE

    def test_a_message_with_text_and_calls_becomes_two_if_its_template_needs_that(self, tmp_path: Path) -> None:
        tokenizer = tokenizer_of(tmp_path, {"chat_template": TEMPLATES["deepseek_r1"]})
        call = {"id": "a", "type": "function", "function": {"name": "ping", "arguments": {}}}
        talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Wait.", "tool_calls": [call]}]
        text = tokenizer.decode(Conversation(tokenizer).encode(talk), False)
        assert (
            f"<｜Assistant｜>Wait.</s><｜Assistant｜>{R1_BEGIN}<｜tool▁call▁begin｜>function<｜tool▁sep｜>ping" in text
        )

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


def rendering(source: str) -> Render:
    template = ChatTemplate(source, "a test")

    def render(
        messages: Any, add_generation_prompt: bool = True, tools: Any = None, variables: Any = None, null: bool = False
    ) -> str:
        names = {"bos_token": "<s>", "eos_token": "</s>", **(variables or {})}
        return template.render(messages, add_generation_prompt, tools, names, null)

    return lambda *positional, null_content=False, **others: render(*positional, null=null_content, **others)


def tokenizer_of(path: Path, config: Any = None) -> Tokenizer:
    return Tokenizer.from_directory(write_model(path, byte_level(), config))


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "integer", "multipleOf": 3}, " 3", 3),
        ({"type": ["string", "integer"]}, "\n3", 3),
        ({"type": ["string", "boolean"]}, " True", True),
        ({"type": ["string", "null"]}, "\tnull", None),
        ({}, '\n {"x": 1}', {"x": 1}),
        ({}, "\x1c{", "\x1c{"),  # white space in Python, and not in JSON
        ({"type": ["string", "array"]}, "\x1f[1]", "\x1f[1]"),
    ],
)
def test_white_space_before_xml_values_is_that_of_json(schema: Any, text: str, value: Any) -> None:
    reader = XmlArguments("tool", json.dumps({"type": "object", "properties": {"a": schema}}))
    written, _ = reader.push(f"<parameter=a>\n{text}\n</parameter>\n</function>")
    assert json.loads(written) == {"a": value}
