"""Normal forms: what a schema without alternatives admits, kind by kind of value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeAlias

from ..patterns.pattern import Pattern
from .numbers import Bound

State: TypeAlias = frozenset[int]
"""A conjunction of schemas by number: n holds, -n does not. The empty one admits every value."""

CONSTANTS = {"null": None, "true": True, "false": False}
KINDS = frozenset({"null", "true", "false", "number", "string", "array", "object"})


@dataclass(frozen=True)
class NumberForm:
    """Numbers. `integral`: only integers (True), or none (False). `excluded` are not admitted."""

    integral: bool | None = None
    low: Bound | None = None
    high: Bound | None = None
    multiples: tuple[Fraction, ...] = ()
    excluded: tuple[float, ...] = ()

    def __and__(self, other: "NumberForm") -> "NumberForm | None":
        if self is NUMBER or other is NUMBER:
            return other if self is NUMBER else self
        if None not in (self.integral, other.integral) and self.integral != other.integral:
            return None
        low, high = _tighter(self.low, other.low, 1), _tighter(self.high, other.high, -1)
        if low is not None and high is not None and (low[0] > high[0] or (low[0] == high[0] and (low[1] or high[1]))):
            return None
        return NumberForm(
            other.integral if self.integral is None else self.integral,
            low,
            high,
            _union(self.multiples, other.multiples),
            _union(self.excluded, other.excluded),
        )


@dataclass(frozen=True)
class StringForm:
    """Strings of `least` to `most` characters in which all `patterns` occur, or, if False, do not occur."""

    least: int = 0
    most: int | None = None
    patterns: tuple[tuple[Pattern, bool], ...] = ()
    excluded: tuple[str, ...] = ()

    def __and__(self, other: "StringForm") -> "StringForm | None":
        if self is STRING or other is STRING:
            return other if self is STRING else self
        least, most = max(self.least, other.least), _least(self.most, other.most)
        if most is not None and least > most:
            return None
        return StringForm(least, most, _union(self.patterns, other.patterns), _union(self.excluded, other.excluded))


@dataclass(frozen=True)
class ArrayForm:
    """Arrays: `prefix` is of the first items, `items` of those after them; `contains` has counts of matching items."""

    prefix: tuple[State, ...] = ()
    items: State = frozenset()
    least: int = 0
    most: int | None = None
    is_unique: bool = False
    contains: tuple[tuple[State, int, int | None], ...] = ()

    def __and__(self, other: "ArrayForm") -> "ArrayForm | None":
        if self is ARRAY or other is ARRAY:
            return other if self is ARRAY else self
        least, most = max(self.least, other.least), _least(self.most, other.most)
        if most is not None and least > most:
            return None
        count = max(len(self.prefix), len(other.prefix))
        return ArrayForm(
            tuple(self.item(place) | other.item(place) for place in range(count)),
            self.items | other.items,
            least,
            most,
            self.is_unique or other.is_unique,
            _union(self.contains, other.contains),
        )

    def item(self, place: int) -> State:
        return self.prefix[place] if place < len(self.prefix) else self.items


@dataclass(frozen=True)
class Scope:
    """The names to which additionalProperties of one schema does not apply, and its state for all others."""

    names: frozenset[str]
    patterns: tuple[Pattern, ...]
    state: State


@dataclass(frozen=True)
class Wanted:
    """A member that an object must have.

    Attributes:
        name, state: of the member's name, and of its value.
        names: names that it must not have.
        patterns: of the name, which has all of them, or, if False, must not have them.
    """

    name: State = frozenset()
    state: State = frozenset()
    names: frozenset[str] = frozenset()
    patterns: tuple[tuple[Pattern, bool], ...] = ()


@dataclass(frozen=True)
class ObjectForm:
    """Objects. `names` is of each name; `required` is in the order of the schema.

    Attributes:
        chains: the names of each `properties`, in its order.
        least_others: how many members must have names that are neither in `properties` nor required.
    """

    properties: Mapping[str, State] = field(default_factory=dict)
    chains: tuple[tuple[str, ...], ...] = ()
    patterns: tuple[tuple[Pattern, State], ...] = ()
    scopes: tuple[Scope, ...] = ()
    required: tuple[str, ...] = ()
    least: int = 0
    most: int | None = None
    names: State = frozenset()
    wanted: tuple[Wanted, ...] = ()
    least_others: int = 0

    def __and__(self, other: "ObjectForm") -> "ObjectForm | None":
        if self is OBJECT or other is OBJECT:
            return other if self is OBJECT else self
        least, most = max(self.least, other.least), _least(self.most, other.most)
        if most is not None and least > most:
            return None
        empty: State = frozenset()
        names = [*self.properties, *(name for name in other.properties if name not in self.properties)]
        return ObjectForm(
            {name: self.properties.get(name, empty) | other.properties.get(name, empty) for name in names},
            _union(self.chains, other.chains),
            _union(self.patterns, other.patterns),
            _union(self.scopes, other.scopes),
            _union(self.required, other.required),
            least,
            most,
            self.names | other.names,
            _union(self.wanted, other.wanted),
            max(self.least_others, other.least_others),
        )


NUMBER, STRING, ARRAY, OBJECT = NumberForm(), StringForm(), ArrayForm(), ObjectForm()


@dataclass(frozen=True)
class Form:
    """Values of some kinds, each with its own restrictions.

    Attributes:
        values: one of these, which fit all of that.
        excluded: arrays and objects that are not admitted.
    """

    kinds: frozenset[str] = KINDS
    number: NumberForm = NUMBER
    string: StringForm = STRING
    array: ArrayForm = ARRAY
    object: ObjectForm = OBJECT
    values: "tuple[Value, ...] | None" = None
    excluded: "tuple[Value, ...]" = ()

    def __and__(self, other: "Form") -> "Form | None":
        if self is ANY_FORM or other is ANY_FORM:
            form = other if self is ANY_FORM else self
            return form if form.kinds else None
        kinds = self.kinds & other.kinds
        parts: dict[str, Any] = {}
        for name in ("number", "string", "array", "object"):
            if name in kinds:
                parts[name] = getattr(self, name) & getattr(other, name)
                if parts[name] is None:
                    kinds -= {name}
                    del parts[name]
        values = self.values
        if other.values is not None:
            others = set(other.values)
            values = other.values if values is None else tuple(value for value in values if value in others)
        if values is not None:
            values = tuple(value for value in values if value.kind in kinds)
            kinds &= {value.kind for value in values}
        return Form(kinds, **parts, values=values, excluded=_union(self.excluded, other.excluded)) if kinds else None


ANY_FORM = Form()
Option: TypeAlias = tuple[Form, tuple[int, ...]]
"""One way to fulfill a literal: a form, and further literals, in the order in which properties are to come."""


class Value:
    """A JSON value that is equal to others as JSON Schema says: 1 and 1.0 are, 1 and true are not."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.kind = kind_of(value)
        self._key = _key(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def kind_of(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _key(value: Any) -> Any:
    if isinstance(value, list):
        return ("array", *map(_key, value))
    if isinstance(value, dict):
        return ("object", frozenset((name, _key(part)) for name, part in value.items()))
    return (kind_of(value), value)


def _tighter(one: Bound | None, other: Bound | None, direction: int) -> Bound | None:
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda bound: (bound[0] * direction, bound[1]))


def _least(one: int | None, other: int | None) -> int | None:
    return one if other is None else other if one is None else min(one, other)


def _union(one: tuple[Any, ...], other: tuple[Any, ...]) -> tuple[Any, ...]:
    return one + tuple(item for item in other if item not in one) if one and other else one or other
