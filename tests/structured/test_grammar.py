"""Structured answers follow their grammar and end within the limit, whatever the model prefers (per jsonschema, re)."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from faquant.structured import grammar_constraint
from faquant.structured.grammar_constraint import GrammarConstraint
from faquant.structured.structured_output import StructuredOutput
from oracles.constrained import LETTERS, SCHEMAS, TOOL, Model, check, least_tokens
from oracles.tiny_tokenizer import write_tokenizer

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


def test_the_example_of_the_docstring(tmp_path: Path) -> None:
    """The steps in the docstring of structured/grammar_constraint.py."""
    rows = re.findall(r"^    (\S*) +(\d) {5}(\S*)  ", str(grammar_constraint.__doc__), re.MULTILINE)
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


def test_durations_are_found(byte_level_model: Model) -> None:
    assert least_tokens(byte_level_model, StructuredOutput(json_schema={"type": "string", "format": "duration"}))


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
