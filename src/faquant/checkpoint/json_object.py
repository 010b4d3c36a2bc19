"""Typed access to the fields of JSON objects from untrusted files."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import CheckpointError

LARGEST_INTEGER = (1 << 31) - 1
_LARGEST_NUMBER = 1e18
_SMALLEST_NUMBER = 1e-18  # within these bounds, RoPE's arithmetic does not overflow


def shown(value: object) -> str:
    """The value for an error message, shortened."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


class JsonObject:
    """Typed access to a JSON object. A wrong value raises an error with file, key and value."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.raw = raw
        self.source = source

    def _value(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        if value is not None:
            return value
        if default is None:
            raise CheckpointError(f"{self.source} has no {key}.")
        return default

    def wrong(self, key: str, value: object, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: {key} must be {wanted}, not {shown(value)}.")

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = LARGEST_INTEGER) -> int:
        value = self._value(key, default)
        if self.raw.get(key) is None:
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(key, value, f"a whole number between {low} and {high}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        sound = not isinstance(value, bool) and isinstance(value, int | float)
        if not sound or not (value == 0 or _SMALLEST_NUMBER <= value <= _LARGEST_NUMBER):
            raise self.wrong(key, value, f"a number that is 0 or between {_SMALLEST_NUMBER:g} and {_LARGEST_NUMBER:g}")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return None if self.raw.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, value, "a string")
        return value

    def texts(self, key: str, default: Sequence[str] | None = None) -> list[str]:
        value = self._value(key, default)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, value, "a list of strings")
        return value

    def optional_object(self, key: str) -> "JsonObject | None":
        value = self.raw.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.wrong(key, value, "an object")
        return JsonObject(value, f"{self.source}, {shown(key)[1:-1]}")

    def object(self, key: str) -> "JsonObject":
        """As optional_object; without one, an empty one."""
        return self.optional_object(key) or JsonObject({}, f"{self.source}, {key}")

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self.raw.get(key)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if any(
            isinstance(item, bool) or not isinstance(item, int) or not 0 <= item <= LARGEST_INTEGER for item in values
        ):
            raise self.wrong(key, value, "a token id or a list of them")
        return tuple(values)
