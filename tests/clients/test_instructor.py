"""instructor: structures in its modes for OpenAI's API, and its loop of repairs.

Its modes MD_JSON and PARALLEL_TOOLS leave the form to the model, so a weak model gets examples. So do its lists, whose
only key is not required; a weak model does not write it.
"""

import json
from collections.abc import Iterable
from typing import Any, Literal

import instructor
import openai
import pytest
from instructor import Mode
from instructor.core import InstructorRetryException
from pydantic import BaseModel, field_validator

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


def test_a_code_block_of_markdown_and_its_stream(served: Served) -> None:
    def asks(city: str, days: int) -> dict[str, Any]:
        wanted = "Return the correct JSON response within a ```json codeblock."
        return {"role": "user", "content": f"The weather in {city} for {days} days.\n\n{wanted}"}

    def tells(city: str, days: int) -> dict[str, Any]:
        return {"role": "assistant", "content": f"```json\n{json.dumps({'city': city, 'days': days})}\n```"}

    examples = [
        message for some in (("London", 3), ("Paris", 2), ("London", 5)) for message in (asks(*some), tells(*some))
    ]
    client, options = connect(served, Mode.MD_JSON), asked(served, Mode.MD_JSON)
    options["messages"] = [*examples, {"role": "user", "content": "The weather in Paris for 4 days."}]
    found, raw = client.create_with_completion(response_model=Asked, **options)
    assert found.model_dump() == {"city": "Paris", "days": 4}
    assert raw.choices[0].message.content == tells("Paris", 4)["content"]
    *_, last = client.create_partial(response_model=Asked, **options)
    assert last.model_dump() == found.model_dump()


class Trip(BaseModel):
    """A trip."""

    to: Literal["Rome", "Oslo"]


def test_parallel_calls(served: Served) -> None:
    """Of two functions in one answer, with tool_choice auto."""

    def call(number: int, some: BaseModel) -> dict[str, Any]:
        function = {"name": type(some).__name__, "arguments": json.dumps(some.model_dump())}
        return {"id": f"call_{number}", "type": "function", "function": function}

    example = [
        {"role": "user", "content": "What will the weather be in London, and a trip to Oslo?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [call(0, Asked(city="London", days=3)), call(1, Trip(to="Oslo"))],
        },
        {"role": "tool", "tool_call_id": "call_0", "content": "ok"},
        {"role": "tool", "tool_call_id": "call_1", "content": "ok"},
        {"role": "assistant", "content": "Sunny."},
    ]
    client, options = connect(served, Mode.PARALLEL_TOOLS), asked(served, Mode.PARALLEL_TOOLS)
    options["messages"] = [
        *example,
        {"role": "user", "content": "What will the weather be in Paris, and a trip to Rome?"},
    ]
    found = list(client.create(response_model=Iterable[Asked | Trip], **options))
    assert [type(one) for one in found] == [Asked, Trip]
    assert (found[0].city, found[1].to) == ("Paris", "Rome")


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
