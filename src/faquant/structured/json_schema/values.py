"""Whether a value fits a form."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

from . import objects
from .forms import KINDS, ArrayForm, Form, NumberForm, ObjectForm, StringForm, Value, Wanted, kind_of
from .interfaces import Normal

_MOST_NAMES = 16


def holds(normal: Normal, form: Form, value: Any) -> bool:
    """Whether a JSON value is of the form."""
    return (form.values is None or Value(value) in form.values) and fits(normal, form, value)


def fits(normal: Normal, form: Form, value: Any) -> bool:
    """Whether a JSON value is of the form, but for its list of values."""
    kind = kind_of(value)
    if kind not in form.kinds or (form.excluded and Value(value) in form.excluded):
        return False
    if kind == "number":
        return _holds_number(form.number, value)
    if kind == "string":
        return _holds_string(form.string, value)
    if kind == "array":
        return _holds_array(normal, form.array, value)
    return kind != "object" or _holds_object(normal, form.object, value)


def other_values(values: list[Any]) -> Form:
    """All values but these."""
    kinds = KINDS - {kind_of(value) for value in values if value is None or isinstance(value, bool)}
    numbers = tuple(value for value in values if isinstance(value, int | float) and not isinstance(value, bool))
    texts = tuple(value for value in values if isinstance(value, str))
    return Form(
        kinds,
        NumberForm(excluded=numbers),
        StringForm(excluded=texts),
        excluded=tuple(Value(value) for value in values if isinstance(value, list | dict)),
    )


def without_excluded(normal: Normal, form: Form) -> list[Form]:
    """The values of a form that it does not exclude: arrays and objects of other sizes, and objects of other names, or
    with another value under one of them."""
    plain = replace(form, excluded=())
    excluded = [each for each in form.excluded if fits(normal, plain, each.value)]
    found = [replace(plain, kinds=form.kinds - {each.kind for each in excluded})]
    arrays = [len(each.value) for each in excluded if each.kind == "array"]
    objects = [each.value for each in excluded if each.kind == "object"]
    if arrays:
        sizes = [ArrayForm(least=max(arrays) + 1)] + ([ArrayForm(most=min(arrays) - 1)] if min(arrays) else [])
        others = [form.array & size for size in sizes]
        found += [replace(plain, kinds=frozenset({"array"}), array=each) for each in others if each is not None]
    if objects:
        least = min(map(len, objects))
        sizes_of_objects = [ObjectForm(most=least - 1)] if least else []
        if not any(objects):
            sizes_of_objects.append(ObjectForm(least=1))
        elif len(objects) == 1:
            absent = normal.state(False)
            sizes_of_objects += [ObjectForm({name: absent}) for name in objects[0] if name not in form.object.required]
        for name in list(dict.fromkeys(name for each in objects for name in each))[:_MOST_NAMES]:
            other = normal.of_form(other_values([each[name] for each in objects if name in each]))
            sizes_of_objects.append(ObjectForm({name: other}, required=(name,)))
        kept = [form.object & each for each in sizes_of_objects]
        found += [replace(plain, kinds=frozenset({"object"}), object=each) for each in kept if each is not None]
    return found


def _holds_number(form: NumberForm, value: float) -> bool:
    exact = Fraction(value)
    if form.integral is not None and form.integral != (exact.denominator == 1):
        return False
    if form.low is not None and (exact < form.low[0] or (exact == form.low[0] and form.low[1])):
        return False
    if form.high is not None and (exact > form.high[0] or (exact == form.high[0] and form.high[1])):
        return False
    decimal = Fraction(repr(value))
    return value not in form.excluded and all((decimal / step).denominator == 1 for step in form.multiples)


def _holds_string(form: StringForm, value: str) -> bool:
    return (
        form.least <= len(value)
        and (form.most is None or len(value) <= form.most)
        and value not in form.excluded
        and all(pattern.occurs(value) == wanted for pattern, wanted in form.patterns)
    )


def _holds_array(normal: Normal, form: ArrayForm, value: list[Any]) -> bool:
    if len(value) < form.least or (form.most is not None and len(value) > form.most):
        return False
    if form.is_unique and len(set(map(Value, value))) < len(value):
        return False
    if not all(normal.admits(form.item(place), item) for place, item in enumerate(value)):
        return False
    for state, least, most in form.contains:
        count = sum(normal.admits(state, item) for item in value)
        if count < least or (most is not None and count > most):
            return False
    return True


def _holds_object(normal: Normal, form: ObjectForm, value: dict[str, Any]) -> bool:
    if len(value) < form.least or (form.most is not None and len(value) > form.most):
        return False
    if any(name not in value for name in form.required):
        return False
    if not all(_has_wanted(normal, wanted, value) for wanted in form.wanted):
        return False
    others = sum(name not in form.properties and name not in form.required for name in value)
    if others < form.least_others:
        return False
    return all(normal.admits(objects.property_state(normal, form, name), part) for name, part in value.items())


def has_name(normal: Normal, wanted: Wanted, name: str) -> bool:
    """Whether a wanted member may have this name."""
    if name in wanted.names or any(pattern.occurs(name) != occurs for pattern, occurs in wanted.patterns):
        return False
    return normal.admits(wanted.name, name)


def _has_wanted(normal: Normal, wanted: Wanted, value: dict[str, Any]) -> bool:
    """Whether an object has a wanted member."""
    return any(has_name(normal, wanted, name) and normal.admits(wanted.state, part) for name, part in value.items())
