"""instructor: structures in its modes for OpenAI's API, and its loop of repairs.

Its modes MD_JSON and PARALLEL_TOOLS leave the choice to the model, and so do its lists, whose only key is not required;
a weak model does not make it.
"""

from typing import Any

import instructor
import openai
import pytest
from instructor import Mode
from instructor.core import InstructorRetryException
from pydantic import field_validator

from clients.weather import FORECAST, LIMIT, TOO_LONG, Anything, Asked, Forecast, Served

pytestmark = pytest.mark.clients

MODES = (Mode.TOOLS, Mode.JSON_SCHEMA, Mode.RESPONSES_TOOLS)
"""Modes whose answers follow the schema."""


def connect(served: Served, mode: Mode) -> instructor.Instructor:
    client = openai.OpenAI(base_url=served.url, api_key=served.key, max_retries=0)
    return instructor.from_openai(client, mode=mode)


def asked(served: Served, mode: Mode) -> dict[str, Any]:
    limit = "max_output_tokens" if mode is Mode.RESPONSES_TOOLS else "max_tokens"
    return {
        "model": served.model,
        "messages": [{"role": "user", "content": FORECAST}],
        "temperature": 0,
        "max_retries": 0,
        limit: LIMIT,
    }


@pytest.mark.parametrize("mode", MODES)
def test_a_structure_and_its_stream(served: Served, mode: Mode) -> None:
    client, options = connect(served, mode), asked(served, mode)
    found, raw = client.create_with_completion(response_model=Asked, **options)
    assert isinstance(found, Asked)
    assert raw.usage.total_tokens > 0
    *before, last = client.create_partial(response_model=Asked, **options)
    assert before
    assert last.model_dump() == found.model_dump()


def test_any_object(served: Served) -> None:
    found = connect(served, Mode.JSON).create(response_model=Anything, **asked(served, Mode.JSON))
    assert isinstance(found, Anything)


@pytest.mark.parametrize("mode", MODES)
def test_the_loop_of_repairs(served: Served, mode: Mode) -> None:
    """The first answer is refused: the client sends it back with the error, and takes the next one."""
    seen: list[str] = []

    class Checked(Asked):
        @field_validator("city")
        @classmethod
        def _second_one(cls, value: str) -> str:
            seen.append(value)
            if len(seen) == 1:
                raise ValueError("ask again")
            return value

    options = {**asked(served, mode), "max_retries": 2}
    found = connect(served, mode).create(response_model=Checked, **options)
    assert isinstance(found, Checked)
    assert len(seen) == 2


def test_errors_have_the_classes_of_the_client(served: Served) -> None:
    options = asked(served, Mode.TOOLS)
    forecast = connect(served, Mode.TOOLS).create(response_model=Forecast, **options)
    assert isinstance(forecast, Forecast)
    with pytest.raises(InstructorRetryException, match="context_length_exceeded"):
        connect(served, Mode.TOOLS).create(
            response_model=Forecast, **{**options, "messages": [{"role": "user", "content": TOO_LONG}]}
        )
