"""Functions that the task `calls` offers, and the questions that ask for them."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

Values = dict[str, Any]


@dataclass(frozen=True)
class Function:
    """A function with JSON schemas of its parameters, all of them required; `question` asks for a call, and `draw`
    chooses the arguments."""

    name: str
    description: str
    parameters: dict[str, dict[str, Any]]
    question: str
    draw: Callable[[Random], Values]

    @property
    def tool(self) -> dict[str, Any]:
        """As a tool of OpenAI's API."""
        schema = {
            "type": "object",
            "properties": self.parameters,
            "required": list(self.parameters),
            "additionalProperties": False,
        }
        function = {"name": self.name, "description": self.description, "parameters": schema}
        return {"type": "function", "function": function}

    def ask(self, random: Random) -> tuple[str, Values]:
        """A question, and the arguments of the right call."""
        values = self.draw(random)
        shown = {name: " and ".join(value) if isinstance(value, list) else value for name, value in values.items()}
        return self.question.format(**shown), values


_CITIES = ("Berlin", "Nairobi", "Lima", "Osaka", "Toronto", "Porto", "Cairo", "Oslo")
_PEOPLE = ("Maria", "Ahmed", "Chen", "Olga", "Pablo", "Ruth")
_DISHES = ("pizza", "ramen", "falafel", "curry", "tacos")
_CURRENCIES = ("EUR", "USD", "JPY", "GBP", "CHF", "INR")


def _string(description: str, *choices: str) -> dict[str, Any]:
    return {"type": "string", "description": description} | ({"enum": list(choices)} if choices else {})


def _number(description: str, kind: str = "integer") -> dict[str, Any]:
    return {"type": kind, "description": description}


def _two(random: Random, values: tuple[str, ...]) -> list[str]:
    return random.sample(values, 2)


def _convert(random: Random) -> Values:
    source, target = _two(random, _CURRENCIES)
    return {"amount": random.randint(5, 5000), "source": source, "target": target}


def _route(random: Random) -> Values:
    start, end = _two(random, _CITIES)
    return {"start": start, "end": end, "vehicle": random.choice(("car", "train", "bicycle"))}


FUNCTIONS = (
    Function(
        "get_weather",
        "Get the weather forecast for a city.",
        {
            "city": _string("Name of the city"),
            "days": _number("Number of days"),
            "unit": _string("Unit of temperature", "celsius", "fahrenheit"),
        },
        "What will the weather be in {city} over the next {days} days? Use {unit}.",
        lambda random: {
            "city": random.choice(_CITIES),
            "days": random.randint(2, 14),
            "unit": random.choice(("celsius", "fahrenheit")),
        },
    ),
    Function(
        "convert_currency",
        "Convert an amount of money from one currency to another.",
        {
            "amount": _number("Amount of money", "number"),
            "source": _string("Currency of the amount", *_CURRENCIES),
            "target": _string("Currency to convert to", *_CURRENCIES),
        },
        "How much is {amount} {source} in {target}?",
        _convert,
    ),
    Function(
        "plan_route",
        "Find the way from one city to another.",
        {
            "start": _string("City where the journey begins"),
            "end": _string("City where the journey ends"),
            "vehicle": _string("Means of transport", "car", "train", "bicycle"),
        },
        "Plan a journey from {start} to {end} by {vehicle}.",
        _route,
    ),
    Function(
        "set_timer",
        "Set a timer.",
        {"minutes": _number("Minutes until it rings"), "label": _string("What the timer is for")},
        "Set a timer of {minutes} minutes for the {label}.",
        lambda random: {"minutes": random.randint(2, 90), "label": random.choice(_DISHES)},
    ),
    Function(
        "book_table",
        "Book a table at a restaurant.",
        {
            "restaurant": _string("Name of the restaurant"),
            "people": _number("Number of people"),
            "time": _string("Time of day, such as 19:30"),
        },
        "Book a table for {people} people at {restaurant} at {time}.",
        lambda random: {
            "restaurant": random.choice(("Casa Verde", "The Old Mill", "Sakura", "Chez Anna")),
            "people": random.randint(2, 12),
            "time": f"{random.randint(17, 21)}:{random.choice(('00', '15', '30', '45'))}",
        },
    ),
    Function(
        "rectangle_area",
        "Compute the area of a rectangle.",
        {"width": _number("Width in meters", "number"), "height": _number("Height in meters", "number")},
        "What is the area of a rectangle that is {width} meters wide and {height} meters high?",
        lambda random: {"width": random.randint(2, 400) / 4, "height": random.randint(2, 400) / 4},
    ),
    Function(
        "create_meeting",
        "Enter a meeting into the calendar.",
        {
            "attendees": {"type": "array", "items": {"type": "string"}, "description": "Names of the people to invite"},
            "minutes": _number("Length in minutes"),
            "online": {"type": "boolean", "description": "True for a video call, false for a meeting in a room"},
        },
        "Create a meeting of {minutes} minutes with {attendees}. Is it online? {online}.",
        lambda random: {
            "attendees": _two(random, _PEOPLE),
            "minutes": random.choice((15, 30, 45, 60, 90)),
            "online": random.random() < 0.5,
        },
    ),
    Function(
        "translate_word",
        "Translate a word into another language.",
        {"word": _string("The word"), "language": _string("Language to translate into", "French", "Spanish", "Hindi")},
        "Translate the word {word} into {language}.",
        lambda random: {
            "word": random.choice(("window", "harvest", "bridge", "thunder", "needle")),
            "language": random.choice(("French", "Spanish", "Hindi")),
        },
    ),
)
