"""Members that objects must have under some name: of the names that may be meant, forms need to have one."""

from dataclasses import replace

from .forms import Form, ObjectForm, State, StringForm, Wanted
from .interfaces import Normal
from .objects import Members, members
from .shortest import Shortest
from .values import has_name

_MOST_FORMS, _MOST_NAMES = 128, 8


def with_wanted(normal: Normal, form: ObjectForm) -> list[ObjectForm]:
    """The forms of objects that have the wanted members: each is one of the properties, or one with another name."""
    forms = [replace(form, wanted=())]
    for wanted in form.wanted:
        forms = [having for each in forms for having in _having(normal, each, wanted)][:_MOST_FORMS]
    return forms


def _having(normal: Normal, form: ObjectForm, wanted: Wanted) -> list[ObjectForm]:
    possible = members(normal, form)
    found = [
        _requiring(form, name, wanted.state)
        for name, state in possible.declared.items()
        if has_name(normal, wanted, name) and not normal.is_empty(state | wanted.state)
    ]
    if possible.others and not (wanted.name or wanted.state or wanted.patterns):
        declared = {**form.properties}
        for name in sorted(wanted.names):
            declared.setdefault(name, frozenset())
        found.append(replace(form, properties=declared, least_others=1))
    elif not found:
        found = [_requiring(form, name, wanted.state) for name in _other_names(normal, form, wanted, possible)]
    return found


def _requiring(form: ObjectForm, name: str, state: State) -> ObjectForm:
    own = form.properties.get(name, frozenset()) | state
    required = form.required if name in form.required else (*form.required, name)
    return replace(form, properties={**form.properties, name: own}, required=required)


def _other_names(normal: Normal, form: ObjectForm, wanted: Wanted, possible: Members) -> list[str]:
    """Some names of a wanted member that are not declared."""
    found: dict[str, None] = {}
    for names, state in possible.others:
        if normal.is_empty(state | wanted.state):
            continue
        string = StringForm(patterns=names.patterns) & StringForm(
            patterns=wanted.patterns, excluded=(*wanted.names, *possible.declared)
        )
        if string is None:
            continue
        own = wanted.name | form.names | normal.of_form(Form(frozenset({"string"}), string=string))
        listed = [value.value for each in normal.forms(own) for value in each.values or ()]
        short = None if listed else Shortest(normal).value(own)
        found |= dict.fromkeys(listed if short is None else short)
    return list(found)[:_MOST_NAMES]
