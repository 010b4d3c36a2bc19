"""A short value of a form, from which the plan of an answer begins. It may be missing or, in rare cases, not fit."""

import math
from typing import Any

from .forms import CONSTANTS, NUMBER, STRING, ArrayForm, Form, NumberForm, ObjectForm, State, StringForm, Value
from .interfaces import Normal
from .objects import Members, members
from .scalars import json_text
from .values import fits

_DEEPEST = 32
_LONGEST = 1 << 16
"""Characters of a string; longer ones are not tried, because they would take memory."""
_LONGEST_MATCHED = 1 << 10
"""The same for strings with patterns, because matching them would take time."""
_MOST_ADDED = 4


class Shortest:
    """Finds short values of states."""

    def __init__(self, normal: Normal) -> None:
        self._normal = normal
        self._found: dict[State, tuple[Any] | None] = {}
        self._open: set[State] = set()

    def value(self, state: State) -> tuple[Any] | None:
        """A short value, in a tuple; None if none is found."""
        if state in self._open or len(self._open) > _DEEPEST:
            return None
        if state not in self._found:
            self._open.add(state)
            values = [value for form in self._normal.forms(state) for value in self._values(form)]
            self._open.discard(state)
            self._found[state] = (min(values, key=_length),) if values else None
        return self._found[state]

    def _values(self, form: Form) -> list[Any]:
        if form.values is not None:
            return [value.value for value in form.values]
        found: list[Any] = [CONSTANTS[kind] for kind in form.kinds if kind in CONSTANTS]
        if "number" in form.kinds:
            found += _numbers(form.number)
        if "string" in form.kinds:
            found += _strings(form.string)
        if "array" in form.kinds:
            found += self._arrays(form.array)
        if "object" in form.kinds:
            found += self._objects(form.object)
        return [value for value in found if fits(self._normal, form, value)]

    def _arrays(self, form: ArrayForm) -> list[Any]:
        count = max([form.least, *(least for _, least, _ in form.contains)])
        if count > _DEEPEST or sum(least for _, least, _ in form.contains) > count:
            return []
        wanted = [state for state, least, _ in form.contains for _ in range(least)]
        if form.is_unique and count > 1:
            values = {Value(value) for each in self._normal.forms(form.items) for value in self._values(each)}
            shortest = sorted((value.value for value in values), key=_length)
            return [shortest[:count]]
        states = [form.item(place) | (wanted[place] if place < len(wanted) else frozenset()) for place in range(count)]
        items = [self.value(state) for state in states]
        return [] if None in items else [[item[0] for item in items if item is not None]]

    def _objects(self, form: ObjectForm) -> list[Any]:
        found = members(self._normal, form)
        names = [name for name in found.declared if name in form.required]
        optional = [name for name in found.declared if name not in form.required]
        parts = {name: self.value(found.declared[name]) for name in names}
        for name in optional:
            if len(parts) >= form.least:
                break
            part = self.value(found.declared[name])
            if part is not None:
                parts[name] = part
        if None in parts.values():
            return []
        value = {name: part[0] for name in found.declared if (part := parts.get(name)) is not None}
        return [value | self._others(found, max(form.least - len(value), form.least_others))]

    def _others(self, found: Members, count: int) -> dict[str, Any]:
        if count != 1 or not found.others:
            return {}
        names, state = found.others[0]
        part = self.value(state)
        examples = [pattern.example() for pattern, wanted in names.patterns if wanted] or ["", "a"]
        fresh = [name for name in examples if name is not None and name not in found.declared]
        return {fresh[0]: part[0]} if part is not None and fresh else {}


def _numbers(form: NumberForm) -> list[Any]:
    if form is NUMBER:
        return [0]
    candidates: list[Any] = [0, 1, 0.5]
    if form.low is not None:
        low = form.low[0]
        candidates += [math.ceil(low), math.floor(low) + 1, *(-(-low // step) * step for step in form.multiples)]
        candidates += [(low // step + 1) * step for step in form.multiples]
    if form.high is not None:
        candidates += [math.floor(form.high[0]), math.ceil(form.high[0]) - 1]
    candidates += form.multiples
    return [int(value) if value == int(value) else float(value) for value in candidates]


def _strings(form: StringForm) -> list[Any]:
    if form is STRING:
        return [""]
    if form.least > (_LONGEST_MATCHED if form.patterns else _LONGEST):
        return []
    found = [pattern.example() for pattern, wanted in form.patterns if wanted]
    texts = [text for text in found if text is not None] or [""]
    longer = {max(form.least - len(text), 0) + more for text in texts for more in range(_MOST_ADDED)}
    return texts + [each for text in texts for count in longer for each in (text + "a" * count, "a" * count + text)]


def _length(value: Any) -> int:
    return len(json_text(value))
