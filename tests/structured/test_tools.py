"""Tool calls, forced or free, are valid whatever the model prefers; nothing else is taken for a call."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from faquant.errors import UsageError
from faquant.structured.structured_output import StructuredOutput
from faquant.structured.tools.calls import MAX_CALLS, MAX_TOOLS, Tool, ToolCalls
from faquant.structured.tools.conversation import Conversation
from faquant.structured.tools.formats import FORMATS, detect
from faquant.structured.tools.parser import CallParser, CallStart, Content, opening_of, parse
from faquant.text.tokenizer import Tokenizer
from oracles.chat_templates import TEMPLATES
from oracles.constrained import LETTERS, SCHEMAS, Model, check
from oracles.tokenizer_kinds import byte_fallback, byte_level, write_model

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "dry": {"type": "boolean"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = (Tool("weather", WEATHER), Tool("ping"))
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


def read(calls: ToolCalls, *texts: str) -> tuple[str, list[tuple[str, str]], bool]:
    """Content, calls with the text of their arguments, and whether the last is complete."""
    parser = CallParser(calls)
    pieces = [piece for text in texts for piece in parser.push(text)] + parser.flush()
    content, found = "", []
    for piece in pieces:
        if isinstance(piece, Content):
            assert not found, "content comes before the calls"
            content += piece.text
        elif isinstance(piece, CallStart):
            assert piece.index == len(found)
            found.append((piece.name, ""))
        else:
            name, text = found[piece.index]
            assert piece.index == len(found) - 1
            found[-1] = (name, text + piece.text)
    return content, found, parser.complete


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


@pytest.fixture(scope="module", params=["special", "plain", "text", "byte_fallback"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Tags are special tokens, added tokens, or plain text."""
    backend = byte_fallback() if request.param == "byte_fallback" else byte_level()
    tags = [style.tag for style in FORMATS.values() if style.tag]
    if request.param in ("special", "byte_fallback"):
        backend.add_special_tokens([AddedToken(tag, special=True, normalized=False) for tag in tags])
    elif request.param == "plain":
        backend.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    model = Model(write_model(tmp_path_factory.mktemp("model"), backend))
    model.kind = request.param  # type: ignore[attr-defined]
    return model


def answer(model: Model, calls: ToolCalls, preference: Any, **params: Any) -> tuple[str, bool]:
    """The answer's text as an engine shows it, and whether it ended by itself."""
    sampler = model.sampler(StructuredOutput(tool_calls=calls), **params)
    constraint, ids = sampler.constraint, []
    assert constraint is not None
    ended = False
    while len(ids) < sampler.params.max_tokens and not sampler.must_end:
        token = sampler.sample(preference(len(ids)))
        ended = sampler.is_end(token)
        if ended or sampler.is_cut:
            break
        ids.append(token)
    shown = [token for token in ids if token in constraint.shown or token not in model.tokenizer.special_token_ids]
    return model.tokenizer.decode(shown, False), ended or (sampler.must_end and not sampler.is_cut)


def least_tokens(model: Model, calls: ToolCalls) -> int:
    """The minimum max_tokens, from the error message for fewer."""
    with pytest.raises(UsageError) as error:
        model.grammars.constraints(StructuredOutput(tool_calls=calls), 0, model.tokenizer.eos_token_ids)
    return int(re.findall(r"\d+", str(error.value))[-1])


class TestForced:
    @given(
        schemas=st.lists(SCHEMAS.filter(lambda schema: schema.get("type") == "object"), min_size=1, max_size=2),
        format=st.sampled_from(["hermes", "llama3_json", "mistral"]),
        letters=LETTERS,
        seed=st.integers(0, 2**32),
        spare=st.integers(0, 80),
        parallel=st.booleans(),
    )
    @settings(max_examples=120, deadline=None)
    def test_arguments_fit_the_schema_at_every_limit(
        self, model: Model, schemas: list[Any], format: str, letters: str, seed: int, spare: int, parallel: bool
    ) -> None:
        tools = {f"tool-{number}": schema for number, schema in enumerate(schemas)}
        calls = ToolCalls(tuple(Tool(*pair) for pair in tools.items()), format, forced=True, parallel=parallel)
        limit = least_tokens(model, calls) + spare
        text, _ = answer(model, calls, model.fond_of(letters, seed), max_tokens=limit, seed=seed)
        content, found, complete = read(calls, text)
        assert content == ""
        assert complete
        assert parallel or len(found) == 1
        for name, arguments in found:
            check(arguments, tools[name])

    @given(
        schema=SCHEMAS,
        required=st.lists(st.sampled_from(["a", "b", "c"]), unique=True),
        letters=LETTERS,
        seed=st.integers(0, 999),
        spare=st.integers(0, 60),
    )
    @settings(max_examples=60, deadline=None)
    def test_pythonic(
        self, model: Model, schema: Any, required: list[str], letters: str, seed: int, spare: int
    ) -> None:
        parameters = {
            "type": "object",
            "properties": {"a": schema, "b": {"type": "boolean"}, "c": {"type": "string"}},
            "required": required,
            "additionalProperties": False,
        }
        calls = ToolCalls((Tool("tool", parameters), Tool("ping")), "pythonic", forced=True)
        limit = least_tokens(model, calls) + spare
        text, _ = answer(model, calls, model.fond_of(letters, seed), max_tokens=limit, seed=seed)
        _, found, complete = read(calls, text)
        assert complete
        for name, arguments in found:
            check(arguments, parameters if name == "tool" else {"maxProperties": 0})

    @pytest.mark.parametrize("format", list(FORMATS))
    def test_an_answer_ends_even_if_the_model_would_not(self, model: Model, format: str) -> None:
        calls = ToolCalls(TOOLS, format, forced=True)
        never = np.zeros(model.vocab_size, np.float32)
        never[list(model.tokenizer.eos_token_ids)] = -100
        text, ended = answer(model, calls, lambda step: never, max_tokens=4000, temperature=0)
        assert ended
        assert 1 <= len(read(calls, text)[1]) <= MAX_CALLS

    @pytest.mark.parametrize("format", list(FORMATS))
    def test_one_call_without_parallel_calls(self, model: Model, format: str) -> None:
        calls = ToolCalls(TOOLS, format, forced=True, parallel=False)
        text, ended = answer(model, calls, model.fond_of(",<\n[", 3), max_tokens=500, seed=5)
        assert ended
        assert len(read(calls, text)[1]) == 1


class TestFree:
    """The model is forced to write some text, and then writes what it prefers."""

    def writes(self, model: Model, text: str, after: Any) -> Any:
        ids = model.tokenizer.encode(text, add_special_tokens=False)

        def preference(step: int) -> np.ndarray:
            row = after(step).copy()
            if step < len(ids):
                row[ids[step]] += 1000
            return row

        return preference

    @pytest.mark.parametrize(
        ("format", "beginning", "content"),
        [
            ("hermes", "Well. <tool_call>", "Well. "),
            ("mistral", "[TOOL_CALLS]", ""),
            ("llama3_json", "<|python_tag|>", ""),
            ("llama3_json", '{"name": "weather"', ""),
            ("llama3_json", ' {"type":"function", "name":  "weather"', ""),
            ("pythonic", "[weather(", ""),
        ],
    )
    @pytest.mark.parametrize("seed", range(4))
    def test_a_call_that_has_begun_is_valid(
        self, model: Model, format: str, beginning: str, content: str, seed: int
    ) -> None:
        if model.kind == "byte_fallback":  # type: ignore[attr-defined]
            beginning = beginning.lstrip()  # its tokenizer adds a space of its own
        calls = ToolCalls(TOOLS, format)
        preference = self.writes(model, beginning, model.fond_of('a"' if seed % 2 else "", seed))
        text, _ = answer(model, calls, preference, max_tokens=150, seed=seed)
        got, found, complete = read(calls, text)
        assert got.lstrip() == content
        assert complete
        for name, arguments in found:
            check(arguments, WEATHER if name == "weather" else {"maxProperties": 0})

    @pytest.mark.parametrize(
        ("format", "beginning"),
        [
            *((format, style.tag) for format, style in FORMATS.items() if style.tag),
            ("llama3_json", '{"name": "weather"'),
            ("pythonic", "[weather("),
        ],
    )
    def test_a_call_beyond_the_limit_leaves_no_trace(self, model: Model, format: str, beginning: str) -> None:
        calls = ToolCalls((Tool("weather", WEATHER),), format)
        shortest = least_tokens(model, ToolCalls(calls.tools, format, forced=True))
        for limit in range(1, shortest + 24):
            preference = self.writes(model, beginning, model.fond_of("a", 1))
            text, ended = answer(model, calls, preference, max_tokens=limit, temperature=0)
            content, found, complete = parse(calls, text, cut=not ended)
            assert complete == bool(found)
            assert len(content.lstrip()) <= 1, "one character of a beginning is more likely text"
        assert found

    @pytest.mark.parametrize("format", list(FORMATS))
    def test_without_tools_no_tag_is_written(self, model: Model, format: str) -> None:
        tag = FORMATS[format].tag or "x"
        calls = ToolCalls((), format)
        preference = self.writes(model, f"a {tag} b", model.fond_of("b", 1))
        text, _ = answer(model, calls, preference, max_tokens=40, temperature=0)
        assert tag == "x" or tag not in text
        assert read(calls, text) == (text, [], False)

    def test_free_text_is_the_same_as_without_tools(self, model: Model) -> None:
        calls = ToolCalls(TOOLS, "hermes")
        preference = model.fond_of("é", 3)
        for params in ({"temperature": 0}, {"seed": 3}, {"seed": 4, "top_p": 0.7, "repetition_penalty": 1.3}):
            free = model.free_sampler(max_tokens=30, **params)
            bound = model.sampler(StructuredOutput(tool_calls=calls), max_tokens=30, **params)
            for step in range(30):
                row = preference(step)
                token = free.sample(row)
                assert bound.constraint is not None
                assert bound.constraint.mask() is None
                assert bound.sample(row) == token
                if free.is_end(token):
                    break


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "parameters", "message"),
        [
            ("", None, "name must be"),
            ("a b", None, "name must be"),
            ("x" * 65, None, "name must be"),
            ("ok", {"type": "string"}, "type object"),
            ("ok", {"type": ["object", "null"]}, "type object"),
            ("ok", {"not": {}}, "parameters of the tool ok has 'not'"),
            ("ok", {"properties": {"a": {"uniqueItems": True}}}, "'uniqueItems' at /properties/a"),
            ("ok", {"description": "x" * 300_000}, "at most 262144 bytes"),
            ("ok", [], "must be a JSON object"),
        ],
    )
    def test_tools(self, name: str, parameters: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            Tool(name, parameters)

    @pytest.mark.parametrize(
        ("tools", "options", "message"),
        [
            ((Tool("a"), Tool("a")), {}, "two tools named a"),
            (tuple(Tool(f"t{n}") for n in range(MAX_TOOLS + 1)), {}, "1 to 128 tools, not 129"),
            ((), {"forced": True}, "1 to 128 tools, not 0"),
            ((Tool("a"),), {"format": "xml"}, "must be one of hermes"),
            ((Tool("a-b"),), {"format": "pythonic"}, "because of 'a-b'"),
            ((Tool("a", {"minProperties": 1}),), {"format": "pythonic"}, "because of 'minProperties'"),
            ((Tool("a", {"properties": {"b c": {}}}),), {"format": "pythonic"}, "because of 'b c'"),
            (
                (Tool("a", {"properties": {"b": {"type": "array", "items": {"$ref": "#"}}}}),),
                {"format": "pythonic"},
                "because of '#'",
            ),
            (tuple(Tool(f"t{n}", {"title": "x" * 200_000}) for n in range(2)), {}, "together must have at most"),
        ],
    )
    def test_several(self, tools: Any, options: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            ToolCalls(tools, **{"format": "hermes", **options})

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"properties": {"a": {"type": "nothing"}}}, "tool broken cannot be enforced: .*nothing"),
            ({"properties": {"a": {"$ref": "#/$defs/b"}}, "required": ["a"]}, "tool broken cannot be enforced"),
            ({"$ref": "#"}, "."),
        ],
    )
    @pytest.mark.parametrize("forced", [True, False])
    def test_broken_parameters(self, model: Model, parameters: Any, message: str, forced: bool) -> None:
        calls = ToolCalls((Tool("good"), Tool("broken", parameters)), "hermes", forced=forced)
        wanted = StructuredOutput(tool_calls=calls)
        with pytest.raises(UsageError, match=message):
            model.grammars.constraints(wanted, 100, model.tokenizer.eos_token_ids)
