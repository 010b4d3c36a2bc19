"""Tool calls or a format: whatever the model prefers, the answer is valid as one of them, and ends within its limit."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from faquant.errors import UsageError
from faquant.structured.structured_output import StructuredOutput
from faquant.structured.tools.calls import Tool, ToolCalls
from faquant.structured.tools.formats import FORMATS
from faquant.structured.tools.parser import parse
from oracles.constrained import LETTERS, Model
from oracles.tokenizer_kinds import byte_level, write_model

SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}},
    "required": ["city"],
    "additionalProperties": False,
}
# Calls of llama3_json are of this form as far as their first tokens go, and to their end with the name.
CALL_LIKE: Any = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "parameters": SCHEMA, "more": {"type": "integer"}},
    "required": ["name", "parameters"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["special", "text"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Tags are special tokens, or plain text."""
    backend = byte_level()
    if request.param == "special":
        tags = dict.fromkeys(marker for style in FORMATS.values() for marker in style.all_markers)
        backend.add_special_tokens([AddedToken(tag, special=True, normalized=False) for tag in tags])
    return Model(write_model(tmp_path_factory.mktemp("model"), backend))


@given(
    format=st.sampled_from(sorted(FORMATS)),
    schema=st.sampled_from([SCHEMA, CALL_LIKE, {"type": "string", "maxLength": 9}, {"type": "array"}]),
    letters=LETTERS,
    seed=st.integers(0, 2**32),
    limit=st.integers(1, 160),
)
@settings(max_examples=150, deadline=None)
def test_the_answer_is_one_of_them(model: Model, format: str, schema: Any, letters: str, seed: int, limit: int) -> None:
    calls = ToolCalls((Tool("weather", SCHEMA), Tool("ping")), format)
    wanted = StructuredOutput(json_schema=schema, tool_calls=calls)
    try:
        sampler = model.sampler(wanted, max_tokens=limit, seed=seed)
    except UsageError as error:
        if error.field != "max_tokens":
            raise
        return  # both are too long
    preference, ids = model.fond_of(letters, seed), []
    constraint = sampler.constraint
    assert constraint is not None
    while not sampler.must_end:
        assert len(ids) < limit or sampler.constraint.may_end  # type: ignore[union-attr]
        if len(ids) == limit:
            break
        token = sampler.sample(preference(len(ids)))
        if sampler.is_end(token) or sampler.is_past_end:
            break
        ids.append(token)
    shown = [token for token in ids if token in constraint.shown or token not in model.tokenizer.special_token_ids]
    text = model.tokenizer.decode(shown, False)
    content, found, complete = parse(calls, text, cut=False, is_formed=True)
    if found:
        assert content == ""
        assert complete
        for call in found:
            jsonschema.validate(json.loads(call.arguments), SCHEMA if call.name == "weather" else {"maxProperties": 0})
    else:
        assert content == text
        jsonschema.validate(json.loads(text), schema)


def test_what_excludes_another_form() -> None:
    calls = ToolCalls((Tool("ping"),), "hermes", forced=True)
    with pytest.raises(UsageError, match="exclude another form"):
        StructuredOutput(json_object=True, tool_calls=calls)
    with pytest.raises(UsageError, match="exclude another form"):
        StructuredOutput(json_object=True, tool_calls=ToolCalls((), "hermes"))
    with pytest.raises(UsageError, match="tool_calls and another"):
        StructuredOutput(json_object=True, regex="a", tool_calls=ToolCalls((Tool("ping"),), "hermes"))
