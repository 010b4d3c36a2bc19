"""Structured output that is refused: invalid forms, limits too small, unsuitable models."""

from pathlib import Path
from typing import Any

import pytest

from faquant.errors import UnsupportedError, UsageError
from faquant.sampling.sampler import Sampler, SamplingParams
from faquant.structured.grammar import Grammars, StructuredOutput
from faquant.text.tokenizer import Tokenizer
from oracles.constrained import TOOL, Model, least_tokens
from oracles.tokenizer_kinds import BACKENDS, write_model


def test_a_limit_too_small_for_any_answer_is_refused(model: Model) -> None:
    wanted = StructuredOutput(json_schema=TOOL)
    shortest = least_tokens(model, wanted)
    with pytest.raises(UsageError, match=rf"max_tokens \({shortest - 1}\) is too small .* {shortest} tokens"):
        model.sampler(wanted, max_tokens=shortest - 1)
    model.sampler(wanted, max_tokens=shortest)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (StructuredOutput(grammar="start: /[^\\x00-\\x{10ffff}]/"), "No complete answer"),
        (StructuredOutput(regex="(a"), "unclosed group"),
        (StructuredOutput(regex="(?=a)b"), "look-around"),
        (StructuredOutput(grammar="begin: /a/"), "cannot be enforced"),
        (StructuredOutput(grammar="start: start"), "."),
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
