"""Objects and arrays of a form: the states of their properties, and whether there are any."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from ..patterns.pattern import Pattern
from .forms import ArrayForm, ObjectForm, State
from .interfaces import Normal
from .member_order import order_of

_NOTHING: State = frozenset({1})
_MOST_OVERLAPPING = 3


@dataclass(frozen=True)
class Names:
    """The names in which these patterns occur, or, if False, do not occur, and that are not declared."""

    patterns: tuple[tuple[Pattern, bool], ...]


@dataclass(frozen=True)
class Members:
    """What an object may have.

    Attributes:
        declared: the states of properties by name, in an order that is right; NOTHING if one must not occur.
        others: the states of further properties by their names, which are disjoint.
    """

    declared: dict[str, State]
    others: tuple[tuple[Names, State], ...]


def members(normal: Normal, form: ObjectForm) -> Members:
    """The properties that objects of a form may have."""
    listed = _listed_names(normal, form)
    names: Iterable[str] = dict.fromkeys([*form.properties, *form.required, *(listed or ())])
    if len(form.chains) > 1:
        names = order_of(names, form.chains).names
    declared = {name: property_state(normal, form, name) for name in names}
    others: list[tuple[Names, State]] = []
    if listed is None:
        of_scopes = [pattern for scope in form.scopes for pattern in scope.patterns]
        patterns = tuple(dict.fromkeys([*(pattern for pattern, _ in form.patterns), *of_scopes]))
        for chosen in _combinations(len(patterns)):
            marks = dict(zip(patterns, chosen, strict=True))
            state = frozenset().union(
                *(part for pattern, part in form.patterns if marks[pattern]),
                *(scope.state for scope in form.scopes if not any(marks[pattern] for pattern in scope.patterns)),
            )
            if not normal.is_empty(state):
                others.append((Names(tuple(marks.items())), state))
    return Members(declared, tuple(others))


def property_state(normal: Normal, form: ObjectForm, name: str) -> State:
    """The state of the property with this name; NOTHING if there must be none."""
    if form.names and not normal.admits(form.names, name):
        return _NOTHING
    return form.properties.get(name, frozenset()).union(
        *(state for pattern, state in form.patterns if pattern.occurs(name)),
        *(
            scope.state
            for scope in form.scopes
            if name not in scope.names and not any(pattern.occurs(name) for pattern in scope.patterns)
        ),
    )


def is_possible(normal: Normal, form: ObjectForm) -> bool:
    """Whether there may be an object of this form."""
    if any(normal.is_empty(property_state(normal, form, name)) for name in form.required):
        return False
    if form.most is not None and len(form.required) > form.most:
        return False
    if form.least <= len(form.required) and not form.least_others:
        return True
    found = members(normal, form)
    if found.others or form.least_others:
        return bool(found.others)
    return sum(not normal.is_empty(state) for state in found.declared.values()) >= form.least


def is_possible_array(normal: Normal, form: ArrayForm) -> bool:
    """Whether there may be an array of this form."""
    if any(normal.is_empty(form.item(place)) for place in range(min(form.least, len(form.prefix) + 1))):
        return False
    wanted = [state for state, least, _ in form.contains if least]
    if wanted and form.most == 0:
        return False
    return all(
        any(not normal.is_empty(state | form.item(place)) for place in range(len(form.prefix) + 1)) for state in wanted
    )


def _listed_names(normal: Normal, form: ObjectForm) -> list[str] | None:
    """All names that an object may have, if propertyNames lists them."""
    if not form.names:
        return None
    found: list[str] = []
    for each in normal.forms(form.names):
        if "string" in each.kinds:
            if each.values is None:
                return None
            found += [value.value for value in each.values if value.kind == "string"]
    return found


def _combinations(count: int) -> list[tuple[bool, ...]]:
    """Which patterns a name may match: all combinations of a few, none or one of many."""
    if count <= _MOST_OVERLAPPING:
        return list(product((True, False), repeat=count))
    return [tuple(number == one for number in range(count)) for one in range(count)] + [(False,) * count]
