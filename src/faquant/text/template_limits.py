"""How much work one chat template may cause: a budget that its loops, calls and strings are charged to."""

from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError

MAX_STEPS = 500_000  # about 20 times what a conversation of 4,000 messages takes
MAX_LENGTH = 32 << 20  # characters of one string, items of one list
MAX_WIDTH = 10_000
_CHARACTERS_PER_STEP = 4096


class TemplateLimitError(SecurityError):
    """The template asked for more work than a chat template needs."""


class Budget:
    """What one compilation or one rendering may still do; used as a context manager."""

    def __init__(self) -> None:
        self.steps = MAX_STEPS

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise TemplateLimitError(f"it takes more than {MAX_STEPS} steps")

    def __enter__(self) -> "Budget":
        self._token = _budget.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _budget.reset(self._token)


_budget: ContextVar[Budget] = ContextVar("faquant_template_budget")


def spend(steps: int) -> None:
    """Charge `steps` to the budget in force."""
    _budget.get().spend(steps)


def charge(value: Any) -> Any:
    """Charge for a value just made, and return it; one that is too large ends the template."""
    if isinstance(value, str | list | tuple | dict):
        charge_length(len(value), isinstance(value, str))
    else:
        spend(1)
    return value


def charge_length(length: int, is_text: bool) -> None:
    """Charge for a string or a list of this length, before it is made where that can be."""
    if length > MAX_LENGTH:
        raise TemplateLimitError(f"it makes a value of {length} characters or items; at most {MAX_LENGTH} are allowed")
    spend(1 + (length // _CHARACTERS_PER_STEP if is_text else length))


def check_widths(values: tuple[Any, ...]) -> None:
    """Refuse a large number among the arguments of a method or filter that pads or repeats."""
    if any(isinstance(value, int) and abs(value) > MAX_WIDTH for value in values):
        raise TemplateLimitError(f"it pads or repeats more than {MAX_WIDTH} times")
