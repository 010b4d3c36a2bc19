"""A grammar admits no value that its schema does not, whatever keywords are combined (per jsonschema)."""

import json
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from faquant.errors import UsageError
from faquant.structured.json_schema import compile_schema
from oracles.schemas import ALL_SCHEMAS, INSTANCES, Recognizer, is_valid


@given(schema=ALL_SCHEMAS, values=st.lists(INSTANCES, min_size=5, max_size=20))
@settings(max_examples=150, deadline=None)
def test_no_invalid_value_is_admitted(schema: Any, values: list[Any]) -> None:
    try:
        compiled = compile_schema(schema)
    except UsageError as error:
        assume("admits no value" not in str(error) and "to check them afterwards" not in str(error))
        raise
    admitted = Recognizer(compiled)
    for value in values:
        if value in admitted and not is_valid(schema, value):
            assert compiled.unenforced
            assert compiled.problem(json.dumps(value)) is not None
