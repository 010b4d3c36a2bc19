"""The expressions for arrays."""

from dataclasses import replace

from .forms import ArrayForm, State, Value
from .interfaces import Writer
from .scalars import COMMA, repeated

_MOST_VALUES = 64  # the bits of llguidance's parameters
_MOST_FIRST = 1024


def options(grammar: Writer, form: ArrayForm, state: State) -> list[str]:
    """The expressions for the arrays of a form of a state; none if there are none."""
    normal = grammar.normal
    if form.is_unique and (form.most is None or form.most > 1):
        values = None if form.prefix or form.contains else grammar.values(form.items, _MOST_VALUES)
        if values is not None:
            return _unique(grammar, form, values)
        if form.least > 1:
            normal.leave_out("'uniqueItems' with 'minItems' of items that are not from a short list of values")
        else:
            grammar.unique.add(state)
    if len(form.contains) == 1 and not form.prefix and form.most is None and form.least <= form.contains[0][1]:
        return _containing(grammar, form)
    if sum(least for _, least, _ in form.contains) > _MOST_FIRST:
        normal.leave_out("'minContains' of so many items")
        return _plain(grammar, form)
    for state, least, most in form.contains:
        form = _beginning(grammar, form, state, least, most)
    return _plain(grammar, form)


def _plain(grammar: Writer, form: ArrayForm) -> list[str]:
    normal = grammar.normal
    prefix, most = list(form.prefix), form.most
    for place, state in enumerate(prefix):
        if normal.is_empty(state):
            most = place if most is None else min(place, most)
            break
    if normal.is_empty(form.items):
        most = len(prefix) if most is None else min(len(prefix), most)
    if most is not None and form.least > most:
        return []
    prefix = prefix if most is None else prefix[:most]
    after = None if most is None else most - len(prefix)
    text = ""
    if after != 0:
        item, least = grammar.rule(form.items), max(form.least - len(prefix), 0)
        if prefix:
            text = repeated(COMMA + item, least, after)
        else:
            text = f"{item} {repeated(COMMA + item, max(least - 1, 0), None if after is None else after - 1)}"
            text = text if least else f"({text})?"
    for place in range(len(prefix) - 1, -1, -1):
        text = f"{COMMA if place else ''}{grammar.rule(prefix[place])} {text}".strip()
        text = text if place < form.least else f"({grammar.new_rule(text)})?"
    return [f'"[" {text} "]"'.replace("  ", " ")]


def _unique(grammar: Writer, form: ArrayForm, values: list[Value]) -> list[str]:
    """A set of the values read so far is the parameter of a rule."""
    least, most = form.least, min(len(values), len(values) if form.most is None else form.most)
    if least > most:
        return []
    items = [grammar.value(value.value) for value in values]
    rest = grammar.new_parametric(
        [f'"" %if bit_count_ge(_, {least})']
        + [
            (f'"," {item} {{name}}::set_bit({bit}) %if and(bit_clear({bit}), bit_count_lt(_, {most}))')
            for bit, item in enumerate(items)
        ]
    )
    first = grammar.new_rule(" | ".join(f"{item} {rest}::{1 << bit:#x}" for bit, item in enumerate(items)) or '""')
    return (['"[" "]"'] if not least else []) + ([f'"[" {first} "]"'] if most else [])


def _containing(grammar: Writer, form: ArrayForm) -> list[str]:
    """The items that are counted may come anywhere."""
    normal = grammar.normal
    ((wanted, least, most),) = form.contains
    other = form.items if most is None else form.items | normal.opposite(wanted, "'contains'")
    item, match = grammar.rule(other), grammar.rule(form.items | wanted)
    found = []
    if not least and not form.least:
        found.append('"[" "]"')
    if not least and most is not None:
        found.append(f'"[" {item} ("," {item})* "]"')
    if most is None and not least:
        return _plain(grammar, replace(form, contains=()))
    if most != 0:
        last = max(least, 1) - 1 if most is None else most - 1
        middle = repeated(f'("," {item})* "," {match}', max(least - 1, 0), last)
        found.append(f'"[" ({item} ",")* {match} {middle} ("," {item})* "]"')
    return found


def _beginning(grammar: Writer, form: ArrayForm, state: State, least: int, most: int | None) -> ArrayForm:
    """Arrays whose first items are those that are counted; a narrower form."""
    count = max(least, len(form.prefix))
    prefix = [form.item(place) for place in range(count)]
    free = [place for place in range(count) if not grammar.normal.is_empty(prefix[place] | state)][:least]
    if len(free) < least:
        free = list(range(least))
    other = frozenset() if most is None else grammar.normal.opposite(state, "'contains'")
    prefix = [part | (state if place in free else other) for place, part in enumerate(prefix)]
    return replace(
        form, prefix=tuple(prefix), items=form.items | other, least=max(form.least, max(free, default=-1) + 1)
    )
