"""Chat templates against transformers, and messages of any shape."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from faquant.errors import CheckpointError, FaquantError, UnsupportedError, UsageError
from faquant.text.chat_template import ChatTemplate
from faquant.text.tokenizer import Tokenizer
from oracles.chat_templates import TEMPLATES, USER, render

Make = Callable[..., Path]
TALK = [
    {"role": "user", "content": " Hi "},
    {"role": "assistant", "content": "Hello. \n"},
    {"role": "user", "content": "{{ 1 }} {% raw %}"},
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": [1, 2.5, None]}}}
TOOL_TALK = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": '{"sun": true}', "name": "weather", "tool_call_id": "abc"},
]
MISTRAL_TALK = [USER, {**TOOL_TALK[1], "tool_calls": [{**CALL, "id": "aB3456789"}]}, TOOL_TALK[2]]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Tell the weather <now> & "here" · ü',
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
SYSTEM = {"role": "system", "content": "Be brief."}


def oracle_of(directory: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)


CASES = [
    (name, messages, tools)
    for name, dialogues in {
        "chatml": [[USER], TALK, [SYSTEM, *TALK]],
        "llama": [[USER], TALK, [SYSTEM, USER], TOOL_TALK],
        "mistral": [[USER], TALK],
        "mistral_tools": [[USER], TALK, [SYSTEM, USER], MISTRAL_TALK],
        "pythonic": [[USER], TALK, [SYSTEM, USER], TOOL_TALK],
        "nemotron": [[USER], TALK, [SYSTEM, USER], [*TOOL_TALK[:1], {**TOOL_TALK[1], "content": "Hm."}, TOOL_TALK[2]]],
        "xlam": [[USER], TALK, [SYSTEM, USER], TOOL_TALK],
        "qwen2_5_coder": [[USER], TALK, TOOL_TALK],
        "qwen3_coder": [[USER], TALK, TOOL_TALK],
        "qwen3": [[USER], TALK, [SYSTEM, USER]],
        "smollm3": [[USER], TALK],
        "deepseek_r1": [[USER], TALK, [SYSTEM, USER]],
        "mistral_v11": [[USER], TALK, [SYSTEM, USER]],
        "mistral_v13": [[USER], TALK, [SYSTEM, USER], MISTRAL_TALK],
        "qwen": [[USER], TALK, [SYSTEM, USER], TOOL_TALK, [*TOOL_TALK, TOOL_TALK[-1], {"role": "other"}, USER]],
    }.items()
    for messages in dialogues
    for tools in ([None] if name in ("chatml", "mistral", "smollm3", "deepseek_r1") else [None, TOOLS])
]


@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize(("name", "messages", "tools"), CASES)
def test_equals_transformers(make_directory: Make, name: str, messages: Any, tools: Any, generate: bool) -> None:
    directory = make_directory({"chat_template": TEMPLATES[name]})
    ours, oracle = Tokenizer.from_directory(directory), oracle_of(directory)
    options = {"tools": tools, "add_generation_prompt": generate}
    text = ours.render_chat(messages, **options)
    assert text == oracle.apply_chat_template(messages, tokenize=False, **options)
    ids = oracle.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    assert ours.encode_chat(messages, **options) == ids


@given(contents=st.lists(st.text(max_size=30), min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_any_text_in_a_message_is_only_text(contents: list[str]) -> None:
    messages = [{"role": "user", "content": content} for content in contents]
    wanted = "".join(f"<|im_start|>user\n{content}<|im_end|>\n" for content in contents)
    system = "<|im_start|>system\nBe helpful.<|im_end|>\n"
    assert render(TEMPLATES["chatml"], messages) == system + wanted + "<|im_start|>assistant\n"


def test_bos_is_not_added_twice(make_directory: Make) -> None:
    directory = make_directory({"chat_template": TEMPLATES["mistral"]}, backend="byte_fallback")
    ours = Tokenizer.from_directory(directory)
    assert ours.encode("th")[0] == 1
    assert ours.encode_chat([USER]).count(1) == 1


def test_variables_reach_the_template(make_directory: Make) -> None:
    directory = make_directory({"chat_template": TEMPLATES["qwen"]})
    ours, oracle = Tokenizer.from_directory(directory), oracle_of(directory)
    text = ours.render_chat([USER], variables={"enable_thinking": False})
    assert text.endswith("</think>\n\n")
    assert text == oracle.apply_chat_template([USER], tokenize=False, add_generation_prompt=True, enable_thinking=False)
    with pytest.raises(UsageError, match="'messages' has its own argument"):
        ours.render_chat([USER], variables={"messages": []})


def test_a_date_can_be_passed(make_directory: Make) -> None:
    ours = Tokenizer.from_directory(make_directory({"chat_template": TEMPLATES["llama"]}))
    assert "Today: 1 May 2030\n" in ours.render_chat([USER], variables={"date_string": "1 May 2030"})


class TestWhichTemplate:
    """The sources of templates, and which one is used."""

    def test_named_templates(self, make_directory: Make) -> None:
        entries = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
        ours = Tokenizer.from_directory(make_directory({"chat_template": entries}))
        assert ours.render_chat([USER]) == "plain"
        assert ours.render_chat([USER], tools=[]) == "plain"
        assert ours.render_chat([USER], tools=TOOLS) == "tools"

    def test_no_default(self, make_directory: Make) -> None:
        entries = [{"name": "rag", "template": "x"}]
        ours = Tokenizer.from_directory(make_directory({"chat_template": entries}))
        with pytest.raises(UnsupportedError, match="named rag, but none named default"):
            ours.render_chat([USER])

    def test_order_of_files(self, make_directory: Make) -> None:
        directory = make_directory(chat_template={"chat_template": "from the json"})
        assert Tokenizer.from_directory(directory).render_chat([USER]) == "from the json"
        directory = make_directory({"chat_template": "from the config"})
        assert Tokenizer.from_directory(directory).render_chat([USER]) == "from the config"
        (directory / "chat_template.jinja").write_text("from the file", encoding="utf-8")
        (directory / "additional_chat_templates").mkdir()
        (directory / "additional_chat_templates" / "tool_use.jinja").write_text("tools", encoding="utf-8")
        ours, oracle = Tokenizer.from_directory(directory), oracle_of(directory)
        for tools, wanted in ((None, "from the file"), (TOOLS, "tools")):
            assert ours.render_chat([USER], tools=tools) == wanted
            assert oracle.apply_chat_template([USER], tools=tools, tokenize=False) == wanted

    def test_none(self, make_directory: Make) -> None:
        ours = Tokenizer.from_directory(make_directory())
        assert not ours.has_chat_template
        with pytest.raises(UnsupportedError, match=r"no chat template.*plain text instead"):
            ours.render_chat([USER])

    def test_unreadable(self, make_directory: Make) -> None:
        directory = make_directory()
        (directory / "chat_template.jinja").write_bytes(b"\xff\xfe")
        with pytest.raises(CheckpointError, match=r"chat_template\.jinja cannot be read"):
            Tokenizer.from_directory(directory)
        (directory / "chat_template.jinja").write_bytes(b" " * ((1 << 20) + 1))
        with pytest.raises(UnsupportedError, match="larger than 1048576 bytes"):
            Tokenizer.from_directory(directory)

    def test_a_broken_template_does_not_prevent_completions(self, make_directory: Make) -> None:
        ours = Tokenizer.from_directory(make_directory({"chat_template": "{% if %}"}))
        assert ours.decode(ours.encode("hello")) == "hello"
        with pytest.raises(UnsupportedError, match=r"tokenizer_config\.json cannot be compiled \(line 1: "):
            ours.render_chat([USER])


@pytest.mark.parametrize(
    "source",
    [
        "{{ {'a': '<&>', 'b': [1, 2.5, none, true], 'ü': 'ü'} | tojson }}",
        "{{ {'b': 1, 'a': [1, {}]} | tojson(indent=2) }}",
        "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true) }}",
        "{{ messages | tojson }}",
        "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}"
        "{% endfor %}",
        "  {% if true %}\n  a\n  {% endif %}\n b",
        "{% set ns = namespace(a=1, b='x') %}{% for i in [1, 2] %}"
        "{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}",
        "{{ dict(a=1).items() | list }} {{ dict([('k', 'v')])['k'] }}",
        "{{ 'a' ~ 1 ~ none ~ [2] ~ missing ~ 2.5 }}|{{ missing }}|{{ missing is defined }}",
        "{% for key, value in {'a': 1, 'b': 2}.items() %}"
        "{{ loop.index }}{{ key }}={{ value }}{{ ', ' if not loop.last }}"
        "{% endfor %}",
        "{% for item in messages | map(attribute='role') %}{{ item }}{{ loop.length }}{% endfor %}",
        "{% for x in missing %}a{% else %}none{% endfor %}"
        "{% for x in [1, 2, 3] if x > 1 recursive %}{{ x }}{% endfor %}",
        "{% for node in [{'n': 1, 'c': [{'n': 2, 'c': []}]}] recursive %}{{ node.n }}{{ loop(node.c) }}{% endfor %}",
        "{% macro m(a, b=2) %}{{ a }}-{{ b }}{{ caller() if caller }}"
        "{% endmacro %}{{ m(1) }}{% call m(3, b=4) %}in{% endcall %}",
        "{{ 'Hello %s, %d' % ('you', 3) }} {{ '{} {:>4}'.format(1, 'a') }} {{ 7 * 6 }} {{ 'ab' * 3 }} {{ 2 ** 10 }}",
        "{{ [1, 2] + [3] }} {{ 'a' in 'abc' }} {{ messages[0].content[:3] }} "
        "{{ messages[-1]['role'] | upper | title }}",
        "{{ '  x ' | trim }}{{ 'a,b'.split(',') | join(';') }}"
        "{{ 'x' | center(9) }}{{ 'a\nb' | indent(4) }}{{ 3.7 | round }}",
        "{% filter upper %}a{{ messages | length }}{% endfilter %}{% set x %}block{% endset %}{{ x }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ [3, 1, 2] | sort | first }}",
        "{{ bos_token }}{% generation %}text{% endgeneration %}{{ add_generation_prompt }}{{ tools }}{{ documents }}",
        "{{ cycler('a', 'b').next() }}{% set j = joiner(',') %}{{ j() }}{{ j() }}{{ 1699999999 | default(0) }}",
        "{{ strftime_now('%Y-%m-%d') }}{{ 'yes' if strftime_now is defined }}",
        "{{ 5 // 2 }}{{ 5 % 3 }}{{ -5 }}{{ 1.5 * 2 }}{{ 'a' < 'b' }}{{ 1 == 1.0 }}{{ not true }}{{ 2 ** -1 }}",
    ],
)
def test_the_language_equals_that_of_transformers(make_directory: Make, source: str) -> None:
    directory = make_directory({"chat_template": source})
    text = Tokenizer.from_directory(directory).render_chat(TALK)
    assert text == oracle_of(directory).apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)


def test_the_template_may_refuse() -> None:
    with pytest.raises(UsageError, match="refuses these messages: Conversation roles must alternate"):
        render(TEMPLATES["mistral"], [USER, USER])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content.nothing.more }}",
        "{{ missing.attribute }}",
        "{{ missing | tojson }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ none() }}",
        "{{ messages | tojson(indent='x', separators=3) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ messages.nothing() }}",
        "{% include 'other' %}",
        "{% import 'other' as other %}",
        "{% extends 'base' %}",
    ],
)
def test_an_error_in_a_template_is_a_usage_error(source: str) -> None:
    with pytest.raises(UsageError, match=r"in a test fails on these messages \("):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ 'open",
        "{% unknown %}",
        "{{ x | nofilter }}",
        "{{" + "(" * 20_000,
        "{% for i in [1] %}" * 40,
        "{% generation %}open",
        "{% set 5 = 6 %}",
        "{% endif %}",
    ],
)
def test_a_template_that_does_not_compile_is_unsupported(source: str) -> None:
    with pytest.raises(UnsupportedError, match="cannot be compiled"):
        render(source)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("text", "must be a list"),
        (None, "must be a list"),
        ({"role": "user"}, "must be a list"),
        ([], "no messages"),
        (["text"], "message 0 must be an object"),
        ([USER, None], "message 1 must be an object"),
        ([{"content": "x"}], "message 0 must have a role"),
        ([{"role": 3, "content": "x"}], "message 0 must have a role"),
        ([{"role": "", "content": "x"}], "message 0 must have a role"),
        ([{"role": "user", "content": 5}], "content must be a string or a list of text parts, not 5"),
        ([{"role": "user", "content": {"a": "b"}}], "content must be a string"),
        ([{"role": "user", "content": "x", 3: 4}], "a key that is not a string"),
        ([{"role": "user", "content": "x", "extra": object()}], "holds a object; only JSON"),
        ([{"role": "user", "content": b"x"}], "holds a bytes; only JSON"),
    ],
)
def test_messages_of_the_wrong_shape_are_refused(messages: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ChatTemplate("x", "a test").render(messages)


@pytest.mark.parametrize("tools", ["text", {"type": "function"}, [1], [None], [{"f": print}]])
def test_tools_of_the_wrong_shape_are_refused(tools: Any) -> None:
    with pytest.raises(UsageError, match=r"[Tt]ool"):
        render("x", tools=tools)


def test_deeply_nested_and_cyclic_messages_are_refused() -> None:
    nested: Any = []
    for _ in range(5000):
        nested = [nested]
    loop: dict[str, Any] = {}
    loop["self"] = loop
    for extra in (nested, loop):
        with pytest.raises(UsageError, match="nested more than 64 levels"):
            render("x", [{"role": "user", "content": "x", "extra": extra}])


def test_parts_of_text_are_joined_and_others_refused() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "a\nb"
    for part in ({"type": "image_url", "image_url": {}}, "a", {"type": "text"}, {"type": "text", "text": 3}):
        with pytest.raises(UnsupportedError, match="text only"):
            render("x", [{"role": "user", "content": [part]}])


def test_an_unpaired_surrogate_is_named(make_directory: Make) -> None:
    ours = Tokenizer.from_directory(make_directory({"chat_template": "{{ messages[0].content }}"}))
    with pytest.raises(UsageError, match="character 1 is an unpaired surrogate"):
        ours.encode_chat([{"role": "user", "content": "a\ud800"}])


def test_a_template_with_an_unpaired_surrogate(make_directory: Make) -> None:
    ours = Tokenizer.from_directory(make_directory({"chat_template": "a\ud800{{ 'b\udfff' }}"}))
    with pytest.raises(FaquantError):
        ours.encode_chat([USER])
