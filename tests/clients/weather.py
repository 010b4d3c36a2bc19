"""What all clients are asked: questions, a tool, and a structure, bounded so that a weak model ends too."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

NAME, KEY = "smollm2", "key-of-the-tests"
QUESTION = "What is the capital of France?"
FORECAST = "What will the weather be in Paris?"
TOKENS = 24
"""max_tokens of answers in free text."""
LIMIT = 120
"""max_tokens of structured answers; the longest has fewer."""
TOO_LONG = "word " * 9000
"""More tokens than the model's context has."""


@dataclass(frozen=True)
class Served:
    """Where the server is."""

    url: str
    model: str = NAME
    key: str = KEY


class Sky(Enum):
    """A sky."""

    CLEAR = "clear"
    CLOUDY = "cloudy"


class Wind(BaseModel):
    """A wind, in km/h."""

    speed: int = Field(ge=0, le=200)
    direction: Literal["N", "E", "S", "W"]


class Forecast(BaseModel):
    """The forecast for a city."""

    city: Literal["Paris", "London"]
    degrees: int = Field(ge=-50, le=50)
    sky: Sky
    wind: Wind | None
    hours: list[Annotated[int, Field(ge=0, le=23)]] = Field(max_length=3)


class Anything(BaseModel):
    """Any JSON object."""

    title: Any = None


class Asked(BaseModel):
    """Arguments of the tool `weather`."""

    city: Literal["Paris", "London"]
    days: int = Field(ge=1, le=7)


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city, for some days.",
        "parameters": {**Asked.model_json_schema(), "additionalProperties": False},
    },
}


def report(city: str, days: int) -> str:
    """The result of the tool."""
    return f"{city}: {days} sunny days."
