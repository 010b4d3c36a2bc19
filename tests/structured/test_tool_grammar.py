"""Tool calls, forced or free, are valid whatever the model prefers."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from faquant.errors import UsageError
from faquant.structured.structured_output import StructuredOutput
from faquant.structured.tools.arguments import write_calls
from faquant.structured.tools.calls import MAX_CALLS, Tool, ToolCalls
from faquant.structured.tools.formats import FORMATS
from faquant.structured.tools.parser import parse
from oracles.constrained import LETTERS, SCHEMAS, Model, check
from oracles.tokenizer_kinds import byte_fallback, byte_level, write_model
from oracles.tool_calls import TOOLS, WEATHER, read


@pytest.fixture(scope="module", params=["special", "plain", "text", "byte_fallback"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Tags are special tokens, added tokens, or plain text."""
    backend = byte_fallback() if request.param == "byte_fallback" else byte_level()
    tags = list(dict.fromkeys(marker for style in FORMATS.values() for marker in style.all_markers))
    if request.param in ("special", "byte_fallback"):
        backend.add_special_tokens([AddedToken(tag, special=True, normalized=False) for tag in tags])
    elif request.param == "plain":
        backend.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    model = Model(write_model(tmp_path_factory.mktemp("model"), backend))
    model.kind = request.param  # type: ignore[attr-defined]
    return model


def skip_deepseek(model: Model, format: str) -> None:
    if model.kind == "byte_fallback" and format == "deepseek_r1":  # type: ignore[attr-defined]
        pytest.skip("this tokenizer decodes the ▁ in DeepSeek's tags to a space")


def answer(model: Model, calls: ToolCalls, preference: Any, **params: Any) -> tuple[str, bool]:
    """The answer's text as an engine shows it, and whether it ended by itself."""
    sampler = model.sampler(StructuredOutput(tool_calls=calls), **params)
    constraint, ids = sampler.constraint, []
    assert constraint is not None
    ended = False
    while len(ids) < sampler.params.max_tokens and not sampler.must_end:
        token = sampler.sample(preference(len(ids)))
        ended = sampler.is_end(token) or sampler.is_past_end
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
        format=st.sampled_from([format for format, style in FORMATS.items() if style.arguments == "json"]),
        letters=LETTERS,
        seed=st.integers(0, 2**32),
        spare=st.integers(0, 80),
        parallel=st.booleans(),
    )
    @settings(max_examples=120, deadline=None)
    def test_arguments_fit_the_schema_at_every_limit(
        self, model: Model, schemas: list[Any], format: str, letters: str, seed: int, spare: int, parallel: bool
    ) -> None:
        if model.kind == "byte_fallback" and format == "deepseek_r1":  # type: ignore[attr-defined]
            format = "hermes"  # this tokenizer decodes the ▁ in DeepSeek's tags to a space
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

    @given(
        schema=SCHEMAS,
        required=st.lists(st.sampled_from(["a", "b", "c", "d"]), unique=True),
        letters=LETTERS,
        seed=st.integers(0, 999),
        spare=st.integers(0, 60),
    )
    @settings(max_examples=60, deadline=None)
    def test_xml_parameters(
        self, model: Model, schema: Any, required: list[str], letters: str, seed: int, spare: int
    ) -> None:
        parameters = {
            "type": "object",
            "properties": {
                "a": schema,
                "b": {"type": ["boolean", "null"]},
                "c": {"type": "string"},
                "d": {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}]},
            },
            "required": required,
            "additionalProperties": False,
        }
        calls = ToolCalls((Tool("tool", parameters), Tool("ping")), "qwen3_coder", forced=True)
        limit = least_tokens(model, calls) + spare
        text, _ = answer(model, calls, model.fond_of(letters, seed), max_tokens=limit, seed=seed)
        _, found, complete = read(calls, text)
        assert complete
        for name, arguments in found:
            check(arguments, parameters if name == "tool" else {"maxProperties": 0})

    @pytest.mark.parametrize(
        "part",
        [
            {"type": "string", "pattern": "^[a-c]+/x$"},
            {"type": "string", "pattern": "[0-9]{2}"},
            {"type": "string", "minLength": 3, "maxLength": 5},
            {"type": "string", "minLength": 2, "pattern": "^a*$"},
            {"enum": ["a b", "null", "</parameter>", "3", "x\ny"]},
            {"enum": ["3", 3, None, "x"]},
            {"type": ["string", "integer"], "minimum": 5, "maxLength": 2},
            {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
            {"oneOf": [{"const": "on"}, {"const": "off"}, {"type": "boolean"}]},
            {"allOf": [{"$ref": "#/$defs/day"}]},
            {"$ref": "#/$defs/day"},
            {"type": ["string", "object", "array"]},
            {"type": "string", "format": "date"},
            {"type": "string", "format": "date-time"},
            {"type": "string", "format": "uuid"},
            {"type": "string", "format": "email"},
            {"type": "string", "format": "ipv4"},
            {"type": "string", "format": "uri"},
            {"type": "string", "format": "hostname"},
            {"type": "string", "format": "json-pointer"},
            {"type": "string", "pattern": "^ab|c$"},
            {"type": "string", "pattern": "a(?=b)"},
            {"type": "string", "pattern": "^[^\\n]*\\n$"},
            {"type": "string", "pattern": "[A-Zé]", "minLength": 2, "maxLength": 4},
            {"type": "string", "not": {"pattern": "[a-c]"}, "maxLength": 3},
            {"type": "string", "not": {"enum": ["", "a", "{"]}, "maxLength": 1},
            {"oneOf": [{"type": "string", "minLength": 2}, {"type": "string", "pattern": "^a"}, {"type": "null"}]},
            {"if": {"type": "string"}, "then": {"maxLength": 2}, "else": {"type": "boolean"}},
            {"enum": ["true", True, "x"]},
            {"type": "array", "items": {"$ref": "#/properties/p/items/$defs/x", "$defs": {"x": {"type": "null"}}}},
            {"type": "string", "const": "only"},
            {"type": "object", "properties": {"x": {"$ref": "#/$defs/day"}}, "additionalProperties": False},
            {},
        ],
        ids=str,
    )
    def test_xml_parameters_of_every_kind(self, model: Model, part: Any) -> None:
        days = {"enum": ["mon", "tue"]}
        parameters = {
            "properties": {"p": part},
            "required": ["p"],
            "$defs": {"day": days},
            "additionalProperties": False,
        }
        calls = ToolCalls((Tool("tool", parameters),), "qwen3_coder", forced=True)
        for seed, letters in enumerate(["", "0123456789", "nul", "{[", "abc/x", "\n<"]):
            text, _ = answer(model, calls, model.fond_of(letters, seed), max_tokens=120, seed=seed)
            _, found, complete = read(calls, text)
            assert complete
            assert found == read(calls, *text)[1]
            for _, arguments in found:
                check(arguments, parameters)

    @pytest.mark.parametrize("format", list(FORMATS))
    def test_an_answer_ends_even_if_the_model_would_not(self, model: Model, format: str) -> None:
        skip_deepseek(model, format)
        calls = ToolCalls(TOOLS, format, forced=True)
        never = np.zeros(model.vocab_size, np.float32)
        never[list(model.tokenizer.eos_token_ids)] = -100
        text, ended = answer(model, calls, lambda step: never, max_tokens=4000, temperature=0)
        assert ended
        assert 1 <= len(read(calls, text)[1]) <= MAX_CALLS

    @pytest.mark.parametrize("format", list(FORMATS))
    def test_one_call_without_parallel_calls(self, model: Model, format: str) -> None:
        skip_deepseek(model, format)
        calls = ToolCalls(TOOLS, format, forced=True, parallel=False)
        text, _ = answer(model, calls, model.fond_of(",<\n[", 3), max_tokens=500, seed=5)
        _, found, complete = read(calls, text)
        assert complete
        assert len(found) == 1


class TestEndAfterCall:
    """A model writes one call, perhaps white space, and wants to end."""

    @pytest.mark.parametrize("format", list(FORMATS))
    @pytest.mark.parametrize("forced", [True, False])
    @pytest.mark.parametrize("space", ["", "\n", "\n\n", " ", "\r\n"])
    def test_the_answer_has_one_call(self, model: Model, format: str, forced: bool, space: str) -> None:
        skip_deepseek(model, format)
        calls, style = ToolCalls(TOOLS, format, forced=forced), FORMATS[format]
        call = write_calls(style, [("ping", {})])
        without_after = call.removesuffix(style.after)
        without_end = without_after.removesuffix(style.end)
        for text in (call + space, without_after + space + style.after, without_after + space, without_end + space):
            text, ended = answer(model, calls, self.then_ends(model, text), max_tokens=400, temperature=0)
            assert ended
            assert read(calls, text) == ("", [("ping", "{}")], True)

    @pytest.mark.parametrize("format", list(FORMATS))
    @pytest.mark.parametrize("seed", range(3))
    def test_an_answer_of_a_model_that_always_wants_to_end_has_one_call(
        self, model: Model, format: str, seed: int
    ) -> None:
        skip_deepseek(model, format)
        calls = ToolCalls(TOOLS, format, forced=True)
        noise = model.fond_of('"', seed)

        def preference(step: int) -> np.ndarray:
            row = noise(step)
            row[list(model.tokenizer.eos_token_ids)] += 1000
            return row

        text, _ = answer(model, calls, preference, max_tokens=600, seed=seed)
        _, found, complete = read(calls, text)
        assert complete
        assert len(found) == 1

    @pytest.mark.parametrize("format", list(FORMATS))
    @pytest.mark.parametrize(
        "params", [{"temperature": 0}, {"seed": 1}, {"seed": 2, "top_p": 0.9, "top_k": 20}], ids=str
    )
    @pytest.mark.parametrize("forced", [True, False])
    def test_words_after_calls_end_the_answer(self, model: Model, format: str, params: Any, forced: bool) -> None:
        skip_deepseek(model, format)
        calls, style = ToolCalls(TOOLS, format, forced=forced), FORMATS[format]
        number = 1 if style.between is None else 2
        text = write_calls(style, [("ping", {})] * number)
        likes_letters = model.fond_of("abcdefgh", 1)
        ids = self.ids(model, text)

        def preference(step: int) -> np.ndarray:
            row = likes_letters(step)
            row[list(model.tokenizer.eos_token_ids)] = -1000
            if step < len(ids):
                row[ids[step]] += 1000
            return row

        text, ended = answer(model, calls, preference, max_tokens=400, **params)
        assert ended
        assert read(calls, text) == ("", [("ping", "{}")] * number, True)

    def then_ends(self, model: Model, text: str) -> Any:
        """Writes the text, as far as the constraint admits it, and prefers to end after it."""
        ids = self.ids(model, text)
        ends = list(model.tokenizer.eos_token_ids)

        def preference(step: int) -> np.ndarray:
            row = np.zeros(model.vocab_size, np.float32)
            row[ends] = 10
            if step < len(ids):
                row[ids[step]] = 1000
            return row

        return preference

    def ids(self, model: Model, text: str) -> list[int]:
        # Unlike an answer, a prompt gets spaces from the normalizer of some tokenizers.
        return model.grammars._vocabulary.tokens(text.encode())


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
            ("hermes", '```json\n{"name": "weather"', ""),
            ("hermes", '<tools> {"name":"weather"', ""),
            ("hermes", '{"name": "weather"', ""),
            ("qwen2_5_coder", "Well. <tools>", "Well. "),
            ("qwen2_5_coder", '```json\n{"name": "weather"', ""),
            ("qwen3_coder", "Well. <tool_call>", "Well. "),
            ("qwen3_coder", "Well. <function=", "Well. "),
            ("deepseek_r1", "Well. <｜tool▁calls▁begin｜>", "Well. "),
            ("llama_nemotron_json", "Well. <TOOLCALL>", "Well. "),
            ("mistral_v11", "Well. [TOOL_CALLS]", "Well. "),
            ("mistral_v13", "Well. [TOOL_CALLS]", "Well. "),
            ("xlam", '[{"name": "weather"', ""),
        ],
    )
    @pytest.mark.parametrize("seed", range(4))
    def test_a_call_that_has_begun_is_valid(
        self, model: Model, format: str, beginning: str, content: str, seed: int
    ) -> None:
        skip_deepseek(model, format)
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
            ("xlam", '[{"name": "weather"'),
            ("qwen3_coder", "<function="),
            ("hermes", '```json\n{"name": "weather"'),
        ],
    )
    def test_a_call_beyond_the_limit_leaves_no_trace(self, model: Model, format: str, beginning: str) -> None:
        skip_deepseek(model, format)
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
