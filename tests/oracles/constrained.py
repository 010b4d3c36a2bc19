"""Answers under a constraint by a model that prefers anything else, and schemas for them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from hypothesis import strategies as st

from faquant.errors import UsageError
from faquant.sampling.sampler import Sampler, SamplingParams
from faquant.structured.grammar import Grammars, StructuredOutput
from faquant.text.tokenizer import Tokenizer

Preference = Callable[[int], np.ndarray]


class Model:
    """A tokenizer, its grammars, and logits that somebody chooses; vocab has padding."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = Tokenizer.from_directory(directory)
        self.vocab_size = self.tokenizer.vocab_size + 11
        self.grammars = Grammars(self.tokenizer, self.vocab_size)
        self.texts = [self.tokenizer.decode([token], False) for token in range(self.vocab_size)]

    def sampler(self, wanted: StructuredOutput, **params: Any) -> Sampler:
        checked = SamplingParams(structured_output=wanted, **params)
        ends = self.tokenizer.eos_token_ids
        constraint = self.grammars.constraints(wanted, checked.max_tokens, ends)()
        return Sampler(checked, vocab_size=self.vocab_size, end_token_ids=ends, constraint=constraint)

    def free_sampler(self, **params: Any) -> Sampler:
        ends = self.tokenizer.eos_token_ids
        return Sampler(SamplingParams(**params), vocab_size=self.vocab_size, end_token_ids=ends)

    def answer(self, sampler: Sampler, preference: Preference) -> str:
        """The answer's text; that it ended by itself, and not at the limit in the middle, is for the caller to see."""
        ids: list[int] = []
        while len(ids) < sampler.params.max_tokens and not sampler.must_end:
            token = sampler.sample(preference(len(ids)))
            if sampler.is_end(token) or sampler.is_past_end:
                break
            ids.append(token)
        assert not set(ids) & self.tokenizer.special_token_ids
        assert all(self.tokenizer.token_text(token) is not None for token in ids)
        return self.tokenizer.decode(ids)

    def fond_of(self, letters: str, seed: int) -> Preference:
        """Noise, and a liking for tokens with these letters, the more of them the better."""
        liking = np.array([sum(text.count(letter) for letter in letters) for text in self.texts], np.float32)
        generator = np.random.default_rng(seed)
        return lambda step: generator.standard_normal(self.vocab_size).astype(np.float32) * 2 + 6 * liking


LEAVES = st.one_of(
    st.sampled_from(
        [{"type": "boolean"}, {"type": "null"}, {"type": "number"}, {"type": "string"}, {"const": [1, "é"]}]
    ),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-99, 99),
        st.integers(0, 150),
    ),
    st.builds(
        lambda low, more: {"type": "number", "minimum": low, "maximum": low + more},
        st.integers(-9, 9),
        st.integers(0, 15),
    ),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 12),
        st.integers(0, 9),
    ),
    st.sampled_from(["^[a-z]{2,5}$", "^[0-9]{3}-[A-F]+$", "^(ab)*c$", "x+y", "^[^@]+@[^@]+$"]).map(
        lambda p: {"type": "string", "pattern": p}
    ),
    st.sampled_from(["date", "uuid", "ipv4", "email"]).map(lambda name: {"type": "string", "format": name}),
    st.lists(
        st.one_of(st.text(max_size=6), st.integers(-99, 99), st.booleans(), st.none()), min_size=1, max_size=4
    ).map(lambda values: {"enum": values}),
)


def _parts(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.dictionaries(st.text('abcé "', min_size=1, max_size=4), inner, max_size=4)
    objects = st.builds(
        lambda parts, required, others: {
            "type": "object",
            "properties": parts,
            "required": [name for name, wanted in zip(parts, required, strict=False) if wanted],
            "additionalProperties": others,
        },
        named,
        st.lists(st.booleans(), min_size=4, max_size=4),
        st.one_of(st.just(False), inner),
    )
    arrays = st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        inner,
        st.integers(0, 3),
        st.integers(0, 3),
    )
    return st.one_of(objects, arrays, st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some}))


SCHEMAS = st.recursive(LEAVES, _parts, max_leaves=8)
LETTERS = st.sampled_from(['"', " \n\t", "[", "{", '{["', "0123456789", "\\", "a", ",", ":", "-.eE", "]}", "é😀", ""])


def check(text: str, schema: Any) -> None:
    """Check that a text is JSON of a schema, and that no object in it has a name twice."""
    validator = jsonschema.Draft202012Validator
    value = json.loads(text, object_pairs_hook=_with_unique_names)
    jsonschema.validate(value, schema, validator, format_checker=validator.FORMAT_CHECKER)


def _with_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    assert len(found) == len(pairs), pairs
    return found


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


def least_tokens(model: Model, wanted: StructuredOutput) -> int:
    """The minimum max_tokens, from the error message for fewer."""
    try:
        model.grammars.constraints(wanted, 0, model.tokenizer.eos_token_ids)
    except UsageError as error:
        return int(re.findall(r"\d+", str(error))[-1])
    return 0
