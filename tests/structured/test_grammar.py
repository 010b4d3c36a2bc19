"""Structured answers follow their grammar and end within the limit, whatever the model prefers (per jsonschema, re)."""

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from faquant.errors import UnsupportedError, UsageError
from faquant.sampling.sampler import Sampler, SamplingParams, sample_rows
from faquant.structured import grammar
from faquant.structured.grammar import GrammarConstraint, Grammars, StructuredOutput
from faquant.text.tokenizer import Tokenizer
from oracles.constrained import LETTERS, SCHEMAS, Model, check
from oracles.tiny_tokenizer import write_tokenizer
from oracles.tokenizer_kinds import BACKENDS, write_model

TOOL = {
    "type": "object",
    "properties": {
        "name": {"enum": ["weather", "time"]},
        "arguments": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "minLength": 1},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
                "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "number"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


@pytest.fixture(scope="module", params=["byte_level", "byte_fallback"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_model(tmp_path_factory.mktemp(request.param), BACKENDS[request.param]()))


@pytest.fixture(scope="module")
def byte_level_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_model(tmp_path_factory.mktemp("byte_level"), BACKENDS["byte_level"]()))


def test_the_example_of_the_docstring(tmp_path: Path) -> None:
    """The steps in the docstring of structured/grammar.py."""
    rows = re.findall(r"^    (\S*) +(\d) {5}(\S*)  ", str(grammar.__doc__), re.MULTILINE)
    assert rows[0] == ("", "6", "[]")
    assert rows[-1] == ('["aa"]', "0", "")
    write_tokenizer(tmp_path)
    model = Model(tmp_path)
    sampler = model.sampler(
        StructuredOutput(json_schema={"type": "array", "items": {"type": "string"}}), temperature=0, max_tokens=6
    )
    logits = np.full(model.vocab_size, -9.0, np.float32)
    for rank, letter in enumerate('a,"['):
        logits[model.texts.index(letter)] = -rank
    text, steps = "", []
    for left in range(6, -1, -1):
        assert isinstance(sampler.constraint, GrammarConstraint)
        plan = "".join(model.texts[token] for token in sampler.constraint._plan)
        steps.append((text, str(left), plan))
        text += model.texts[sampler.sample(logits)] if left else ""
    assert steps == rows
    assert sampler.must_end


@given(
    schema=SCHEMAS,
    letters=LETTERS,
    seed=st.integers(0, 2**32),
    spare=st.integers(0, 60),
    greedy=st.booleans(),
)
@settings(max_examples=250, deadline=None)
def test_answers_fit_the_schema_at_every_limit(
    model: Model, schema: Any, letters: str, seed: int, spare: int, greedy: bool
) -> None:
    wanted = StructuredOutput(json_schema=schema)
    shortest = least_tokens(model, wanted)
    sampler = model.sampler(wanted, max_tokens=max(1, shortest + spare), temperature=0 if greedy else 1, seed=seed)
    check(model.answer(sampler, model.fond_of(letters, seed)), schema)


NUMBERS = [
    {"exclusiveMinimum": 0},
    {"exclusiveMinimum": 0, "maximum": 0.5},
    {"exclusiveMinimum": -0.5, "exclusiveMaximum": 0},
    {"exclusiveMinimum": 99.5, "exclusiveMaximum": 99.6},
    {"multipleOf": 100, "minimum": 1},
    {"multipleOf": 0.25, "exclusiveMaximum": 0},
]


@pytest.mark.parametrize("bounds", NUMBERS, ids=str)
@pytest.mark.parametrize("letters", ["0", ".", "-", "[,"])
def test_numbers_within_bounds_are_found_and_kept(
    byte_level_model: Model, bounds: dict[str, Any], letters: str
) -> None:
    number = {"type": "number", **bounds}
    schema = {"type": "object", "properties": {"a": number, "b": {"type": "array", "items": number, "minItems": 2}}}
    schema |= {"required": ["a", "b"], "additionalProperties": False}
    wanted = StructuredOutput(json_schema=schema)
    for spare in (0, 3, 30):
        limit = least_tokens(byte_level_model, wanted) + spare
        sampler = byte_level_model.sampler(wanted, max_tokens=limit, temperature=0)
        check(byte_level_model.answer(sampler, byte_level_model.fond_of(letters, 1)), schema)


@pytest.mark.parametrize("bound", [True, "a", 10**400, None])
def test_bounds_that_are_not_numbers_are_ignored(bound: Any) -> None:
    for schema in ({"exclusiveMinimum": bound, "maximum": 0.5}, {"exclusiveMinimum": 0, "maximum": bound}):
        assert json.loads(StructuredOutput(json_schema=schema).json_schema or "") == schema


def test_durations_are_found(byte_level_model: Model) -> None:
    assert least_tokens(byte_level_model, StructuredOutput(json_schema={"type": "string", "format": "duration"}))


def least_tokens(model: Model, wanted: StructuredOutput) -> int:
    """The minimum max_tokens, from the error message for fewer."""
    try:
        model.grammars.constraints(wanted, 0, model.tokenizer.eos_token_ids)
    except UsageError as error:
        return int(re.findall(r"\d+", str(error))[-1])
    return 0


@pytest.mark.parametrize("schema", [TOOL, TREE])
@pytest.mark.parametrize("letters", ['"', " \n", "[{", "0", "n", "\\", ""])
@pytest.mark.parametrize("spare", [0, 1, 5, 100])
def test_tools_and_trees(model: Model, schema: Any, letters: str, spare: int) -> None:
    wanted = StructuredOutput(json_schema=schema)
    sampler = model.sampler(wanted, max_tokens=least_tokens(model, wanted) + spare, temperature=0)
    check(model.answer(sampler, model.fond_of(letters, 1)), schema)


@pytest.mark.parametrize("letters", ["{", '"', " \n", "[", ""])
def test_json_objects(model: Model, letters: str) -> None:
    text = model.answer(
        model.sampler(StructuredOutput(json_object=True), max_tokens=50, seed=1), model.fond_of(letters, 2)
    )
    assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    "pattern", ["a+b", "(ab)*c[0-9]{12}", "[a-z]{3}|[0-9]{5}", "Größe: [0-9]+ (cm|mm)", "x?(yz){4}", "."]
)
@pytest.mark.parametrize("letters", ["a", "0", "yz", ""])
def test_regular_expressions(model: Model, pattern: str, letters: str) -> None:
    wanted = StructuredOutput(regex=pattern)
    sampler = model.sampler(wanted, max_tokens=max(1, least_tokens(model, wanted)) + 7, seed=3)
    text = model.answer(sampler, model.fond_of(letters, 3))
    assert re.fullmatch(pattern, text), text


@given(
    choice=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=9), min_size=1, max_size=5),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_choices(byte_level_model: Model, choice: list[str], seed: int) -> None:
    assume(not any("\x00" in text for text in choice))
    wanted = StructuredOutput(choice=tuple(choice))
    sampler = byte_level_model.sampler(wanted, max_tokens=40, seed=seed)
    assert byte_level_model.answer(sampler, byte_level_model.fond_of("", seed)) in choice


def test_grammars(model: Model) -> None:
    wanted = StructuredOutput(grammar='start: "(" start ")" | /[0-9]{1,3}/')
    for letters in ("(", ")", "0"):
        text = model.answer(model.sampler(wanted, max_tokens=13, temperature=0), model.fond_of(letters, 4))
        assert re.fullmatch(r"\(*[0-9]{1,3}\)*", text)
        assert text.count("(") == text.count(")")


def test_an_end_may_come_exactly_where_the_answer_is_complete(model: Model) -> None:
    pattern = re.compile("ab?(cd)*")
    wanted = StructuredOutput(regex=pattern.pattern)
    constraint = model.grammars.constraints(wanted, 20, model.tokenizer.eos_token_ids)()
    text = ""
    for letter in "abcdcd":
        flags = np.unpackbits(constraint.mask(), bitorder="little")[: model.vocab_size]
        complete = pattern.fullmatch(text) is not None
        assert constraint.may_end == complete
        assert not constraint.must_end
        assert all(flags[token] == complete for token in model.tokenizer.eos_token_ids)
        assert not constraint.admits(model.texts.index("z"), 20)
        token = next(token for token in np.flatnonzero(flags).tolist() if model.texts[token] == letter)
        assert constraint.admits(token, 20)
        constraint.accept(token)
        text += letter


def test_trying_a_token_does_not_take_it(model: Model) -> None:
    constraint = model.grammars.constraints(StructuredOutput(regex="ab|cd"), 9, model.tokenizer.eos_token_ids)()
    before = constraint.mask().tolist()
    for letter in "acac":
        assert constraint.admits(model.texts.index(letter), 8)
    assert constraint.mask().tolist() == before
    with pytest.raises(UsageError, match="not admitted"):
        constraint.accept(model.texts.index("a"))


def test_the_plan_is_followed_if_llguidance_reaches_a_limit(model: Model) -> None:
    sampler = model.sampler(StructuredOutput(json_schema=TOOL), max_tokens=90, temperature=0)
    constraint, preference = sampler.constraint, model.fond_of("a", 0)
    ids = [sampler.sample(preference(step)) for step in range(40)]
    constraint._matcher.consume_token(model.tokenizer.bos_token_id)  # type: ignore[union-attr]
    assert constraint._matcher.is_error()  # type: ignore[union-attr]
    while not sampler.must_end:
        ids.append(sampler.sample(preference(0)))
    check(model.tokenizer.decode(ids), TOOL)
    assert sampler.is_end(sampler.sample(preference(0)))


def test_only_an_end_follows_the_last_token(model: Model) -> None:
    sampler = model.sampler(StructuredOutput(choice=("a",)), max_tokens=9, min_tokens=5, seed=1)
    assert model.answer(sampler, model.fond_of("", 0)) == "a"
    assert sampler.must_end
    assert sampler.is_end(sampler.sample(model.fond_of("z", 0)(0)))
    assert sampler.must_end


def test_penalties_and_bias_do_not_break_the_form(model: Model) -> None:
    quote = model.texts.index('"')
    for step in range(10):
        sampler = model.sampler(
            StructuredOutput(json_schema=TOOL),
            max_tokens=80,
            min_tokens=70,
            seed=step,
            repetition_penalty=3.0,
            presence_penalty=2.0,
            logit_bias={quote: -100.0},
            top_p=0.9,
            top_k=10,
        )
        check(model.answer(sampler, model.fond_of("", step)), TOOL)


def test_an_answer_does_not_depend_on_others_of_its_grammar(byte_level_model: Model) -> None:
    model = byte_level_model
    wanted = StructuredOutput(json_schema=TOOL)
    rows = np.random.default_rng(0).standard_normal((60, 3, model.vocab_size)).astype(np.float32) * 3

    def samplers() -> list[Sampler]:
        return [model.sampler(wanted, max_tokens=60, seed=seed) for seed in range(3)]

    together = samplers()
    steps = []
    for row in rows:
        steps.append(sample_rows(row, together))
        if any(sampler.must_end or sampler.is_end(token) for sampler, token in zip(together, steps[-1], strict=True)):
            break
    for number, sampler in enumerate(samplers()):
        assert [sampler.sample(row[number]) for row in rows[: len(steps)]] == [step[number] for step in steps]


def test_compiled_grammars_are_cached_and_evicted(byte_level_model: Model) -> None:
    grammars = Grammars(byte_level_model.tokenizer, byte_level_model.vocab_size, capacity=2)
    first, second, third = (StructuredOutput(choice=(text,)) for text in "abc")
    for wanted in (first, second, first, third):
        grammars.constraints(wanted, 5, [2])
    assert list(grammars._compiled) == [first, third]


def test_a_grammar_is_compiled_once_for_concurrent_requests(
    byte_level_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = [], threading.Event()

    class Slow(grammar._Compiled):
        def __init__(self, vocabulary: Any, wanted: StructuredOutput) -> None:
            begun.append(wanted)
            assert go_on.wait(30)
            super().__init__(vocabulary, wanted)

    monkeypatch.setattr(grammar, "_Compiled", Slow)
    grammars = Grammars(byte_level_model.tokenizer, byte_level_model.vocab_size)
    good, bad = StructuredOutput(choice=("a",)), StructuredOutput(regex="(")
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(grammars.constraints, wanted, 5, [2]) for wanted in (good, bad) * 3]
        while len(begun) < 2:
            time.sleep(0.001)
        go_on.set()
        assert all(each.result()().mask() is not None for each in asked[::2])
        for each in asked[1::2]:
            with pytest.raises(UsageError, match="cannot be enforced"):
                each.result()
    assert sorted(map(repr, begun)) == sorted(map(repr, (good, bad)))
    with pytest.raises(UsageError):
        grammars.constraints(bad, 5, [2])
    assert list(grammars._compiled) == [good]


def test_a_limit_too_small_for_any_answer_is_refused(model: Model) -> None:
    wanted = StructuredOutput(json_schema=TOOL)
    shortest = least_tokens(model, wanted)
    with pytest.raises(UsageError, match=rf"max_tokens \({shortest - 1}\) is too small .* {shortest} tokens"):
        model.sampler(wanted, max_tokens=shortest - 1)
    model.sampler(wanted, max_tokens=shortest)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"not": {"type": "string"}}, "'not' at its top"),
        ({"properties": {"a": {"if": {}}}}, "'if' at /properties/a"),
        ({"items": {"anyOf": [{"minimun": 3}]}}, "'minimun' at /items/anyOf/0"),
        ({"$defs": {"x": {"uniqueItems": True}}}, "'uniqueItems' at /\\$defs/x"),
        ({"x-guidance": {"lenient": True}}, "'x-guidance'"),
        ({"type": "object", "minProperties": 2}, "minProperties at its top"),
        ([], "must be a JSON object"),
        ("{", "is not valid JSON"),
        ("", "non-empty"),
        (5, "must be a JSON object"),
        ({"const": float("nan")}, "is not valid JSON"),
        ({"const": {1}}, "is not valid JSON"),
        ({"const": "\ud800"}, "valid Unicode"),
        ({"description": "x" * 300_000}, "at most 262144 bytes"),
        ("[" * 100_000 + "]" * 100_000, "is not valid JSON|nested"),
    ],
)
def test_schemas_that_would_not_be_enforced_are_refused(schema: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StructuredOutput(json_schema=schema)


def pattern(number: int) -> dict[str, Any]:
    return {"type": "string", "pattern": f"(.*{number}){{{3 + number % 5}}}"}


def chain(count: int) -> dict[str, Any]:
    schema = pattern(0)
    for number in range(1, count):
        schema = {**pattern(number), "anyOf": [schema]}
    return schema


MANY = [pattern(number) for number in range(16)]
DEFINITIONS = {"$defs": {f"d{number}": pattern(number) for number in range(16)}}


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": MANY},
        {"allOf": [{"properties": {"a": each}} for each in MANY]},
        {"properties": {"a": chain(16)}},
        {"allOf": [{"$ref": f"#/$defs/d{number}"} for number in range(16)], **DEFINITIONS},
        {"$ref": "#/$defs/d0", "$defs": {f"d{n}": {**pattern(n), "$ref": f"#/$defs/d{n + 1}"} for n in range(16)}},
    ],
)
def test_combined_patterns_are_refused_before_they_use_all_memory(schema: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="more than 4 patterns or formats"):
        StructuredOutput(json_schema=schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {f"p{number}": each for number, each in enumerate(MANY)}, "anyOf": [{"required": ["p1"]}]},
        {"anyOf": MANY},
        {"properties": {f"p{n}": {"allOf": [{"$ref": f"#/$defs/d{n}"}]} for n in range(16)}, **DEFINITIONS},
    ],
)
def test_separate_patterns_are_accepted(schema: dict[str, Any], model: Model) -> None:
    model.grammars.constraints(StructuredOutput(json_schema=schema), 200, model.tokenizer.eos_token_ids)


def test_a_schema_nested_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(70):
        schema = {"items": schema}
    with pytest.raises(UsageError, match="nested more than 64"):
        StructuredOutput(json_schema=schema)


MANY_OPTIONAL = {
    "type": "object",
    "properties": {f"p{number}": {"type": "null"} for number in range(900)},
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (StructuredOutput(json_schema={"type": "objectx"}), "Invalid type: objectx"),
        (StructuredOutput(json_schema={"type": "string", "format": "none"}), "Unknown format"),
        (StructuredOutput(json_schema={"type": "array", "minItems": 3, "maxItems": 2}), "Unsatisfiable"),
        (StructuredOutput(json_schema={"$ref": "http://x/y"}), "not present"),
        (StructuredOutput(json_schema={"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
        (StructuredOutput(regex="(a"), "unclosed group"),
        (StructuredOutput(regex="(?=a)b"), "look-around"),
        (StructuredOutput(grammar="begin: /a/"), "cannot be enforced"),
        (StructuredOutput(grammar="start: start"), "."),
        (StructuredOutput(json_schema=MANY_OPTIONAL), "structure is too large"),
    ],
)
def test_what_llguidance_refuses_is_a_usage_error(
    byte_level_model: Model, wanted: StructuredOutput, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        byte_level_model.grammars.constraints(wanted, 100, [2])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"json_object": False},
        {"json_object": True, "regex": "a"},
        {"json_object": 1},
        {"regex": ""},
        {"regex": 5},
        {"choice": ()},
        {"choice": "ab"},
        {"choice": ("a", "")},
        {"choice": ("a", 5)},
        {"choice": ("a",) * 1025},
        {"grammar": "\ud800"},
    ],
)
def test_exactly_one_field_is_accepted(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        StructuredOutput(**fields)


def test_forms_are_values() -> None:
    schema = {"type": "object"}
    wanted = StructuredOutput(json_schema=schema)
    schema["type"] = "string"
    assert wanted == StructuredOutput(json_schema='{"type": "object"}')
    assert hash(wanted) == hash(StructuredOutput(json_schema='{"type": "object"}'))
    assert StructuredOutput(choice=["a"]) == StructuredOutput(choice=("a",))  # type: ignore[arg-type]


def test_end_tokens_are_required_and_must_be_special(byte_level_model: Model) -> None:
    model, wanted = byte_level_model, StructuredOutput(choice=("a",))
    with pytest.raises(UsageError, match="needs a model with an end token"):
        model.grammars.constraints(wanted, 9, [])
    with pytest.raises(UsageError, match="must be special tokens"):
        model.grammars.constraints(wanted, 9, [model.texts.index("a")])
    with pytest.raises(UsageError, match="was given no constraint"):
        Sampler(SamplingParams(structured_output=wanted))
    with pytest.raises(UsageError, match="ignore_eos excludes"):
        SamplingParams(structured_output=wanted, ignore_eos=True)
    with pytest.raises(UsageError, match="structured_output must be"):
        SamplingParams(structured_output={"regex": "a"})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["metaspace", "no_decoder", "ctc"])
def test_tokenizers_with_unknown_bytes_are_refused(name: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(write_model(tmp_path / name, BACKENDS[name]()))
    with pytest.raises(UnsupportedError, match="Structured output is not possible"):
        Grammars(tokenizer, tokenizer.vocab_size)
