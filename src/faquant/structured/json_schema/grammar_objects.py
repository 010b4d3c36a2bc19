"""The expressions for objects."""

from collections.abc import Iterator

from .forms import ObjectForm, State, StringForm
from .interfaces import Writer
from .member_order import order_of
from .objects import Members, Names, members
from .scalars import COMMA, repeated, string_terminal

_MOST_RULES = 8192
_BLOCK = 8  # members in one rule, because rules must not be nested too deep


def options(grammar: Writer, form: ObjectForm) -> list[str]:
    """The expressions for the objects of a form; none if there are none."""
    return _Objects(grammar, form).options()


class _Objects:
    def __init__(self, grammar: Writer, form: ObjectForm) -> None:
        self._grammar, self._form = grammar, form
        found = members(grammar.normal, form)
        required = frozenset(form.required)
        names = [
            name for name, state in found.declared.items() if name in required or not grammar.normal.is_empty(state)
        ]
        self._fields = [
            (f'{grammar.key(name)} ":" {grammar.rule(found.declared[name])}', name in required) for name in names
        ]
        self._order = order_of(names, form.chains) if len(form.chains) > 1 else None
        self._other = self._other_member(found)
        self._least = form.least - len(required)
        self._most = None if form.most is None else form.most - len(required)
        self._is_counted = self._most is not None or self._least > 0

    def options(self) -> list[str]:
        if self._most is not None and self._most < 0:
            return []
        if self._form.least_others and not self._other:
            return []
        if self._is_counted:
            if self._other and self._least - 1 > sum(not is_required for _, is_required in self._fields):
                self._grammar.normal.leave_out(f"'minProperties' ({self._form.least}) with names that are not listed")
                self._least = 1
            if len(self._fields) * self._last > _MOST_RULES:
                self._grammar.normal.leave_out("'minProperties' or 'maxProperties' with so many properties")
                self._least, self._most, self._is_counted = 0, None, False
        if self._is_counted:
            inner = self._counted()
        elif self._order is None or self._order.is_total:
            inner = self._in_order()
        else:
            inner = self._in_some_order(self._order.before)
        return [] if inner is None else [f'"{{" {inner} "}}"']

    @property
    def _last(self) -> int:
        """The number of optional members up to which they are counted."""
        bound = self._least if self._most is None else self._most
        return min(bound, sum(not is_required for _, is_required in self._fields))

    def _in_order(self) -> str:
        """The members, each after those before it."""
        first = next((place for place, (_, is_required) in enumerate(self._fields) if is_required), len(self._fields))
        parts = [f'"," {member}' if needed else f'("," {member})?' for member, needed in self._fields[first + 1 :]]
        rest = " ".join([*parts, self._others(0, True) or ""])
        if first < len(self._fields):
            member = self._fields[first][0]
            if not first:
                return f"{member} {rest}"
            rest = self._grammar.new_rule(f"{member} {rest}")
            options, rest = [rest], f'"," {rest}'
        else:
            options = [self._others(0, False) or '""']
        for place in range(first - 1, -1, -1):
            member = self._grammar.new_rule(self._fields[place][0])
            options.append(f"{member} {rest}")
            rest = f"({COMMA}{member})? {rest}"
            if place and place % _BLOCK == 0:
                rest = self._grammar.new_rule(rest)
        return self._grammar.new_rule(" | ".join(reversed(options)))

    def _in_some_order(self, before: tuple[int, ...]) -> str:
        """The members, each after those that must come before it. The parameter of a rule has a bit for each so far."""
        needed = sum(1 << place for place, (_, is_required) in enumerate(self._fields) if is_required)
        after = [
            sum(1 << other for other, bits in enumerate(before) if bits >> place & 1) for place in range(len(before))
        ]
        members = [self._grammar.new_rule(member) for member, _ in self._fields]
        options = [_if(self._others(0, True) or '""', _are_set(needed))]
        for place, member in enumerate(members):
            conditions = [f"bit_clear({place})", *_are_set(before[place] & needed)]
            if not needed >> place & 1:  # what comes after a required member waits for it
                conditions += _are_clear(after[place])
            options.append(_if(f'"," {member} {{name}}::set_bit({place})', conditions))
        rest = self._grammar.new_parametric(options)
        firsts = [
            f"{member} {rest}::{1 << place:#x}" for place, member in enumerate(members) if not before[place] & needed
        ]
        return self._grammar.new_rule(" | ".join([*firsts, *([] if needed else [self._others(0, False) or '""'])]))

    def _counted(self) -> str | None:
        """The members by the number of optional ones so far; None if there are never enough."""
        last = self._last
        after: dict[tuple[int, bool], str | None] = {
            (count, is_begun): self._others(count, is_begun) for count in range(last + 1) for is_begun in (False, True)
        }
        for field, is_required in reversed(self._fields):
            member, found = self._grammar.new_rule(field), {}
            for count, is_begun in after:
                options: list[str | None] = [] if is_required else [after[count, is_begun]]
                taken = count if is_required else min(count + 1, last)
                if (is_required or self._most is None or count < last) and after[taken, True] is not None:
                    options.insert(0, f"{COMMA if is_begun else ''}{member} {after[taken, True]}")
                texts = [text or '""' for text in options if text is not None]
                found[count, is_begun] = self._grammar.new_rule(" | ".join(texts)) if texts else None
            after = found
        return after[0, False]

    def _others(self, count: int, is_begun: bool) -> str | None:
        least = max(self._least - count, self._form.least_others)
        if least > 1:  # they might have the same name
            return None
        most = None if self._most is None else self._most - count
        if not self._other or most == 0:
            return None if least else ""
        if is_begun:
            return repeated(COMMA + self._other, least, most)
        rest = repeated(COMMA + self._other, max(least - 1, 0), None if most is None else most - 1)
        more = f"{self._other} {rest}"
        return more if least else f"({more})?"

    def _other_member(self, found: Members) -> str:
        options = []
        for names, state in found.others:
            terminals = self._terminals(names, tuple(found.declared))
            if terminals:
                options.append(f'{self._grammar.terminal(" | ".join(terminals))} ":" {self._grammar.rule(state)}')
        if not options:
            return ""
        self._grammar.has_open_names = True
        return self._grammar.new_rule(" | ".join(options))

    def _terminals(self, names: Names, declared: tuple[str, ...]) -> list[str]:
        normal = self._grammar.normal
        own: State = self._form.names
        forms = [form for form in normal.forms(own) if "string" in form.kinds]
        found = []
        for form in forms:
            met = form.string & StringForm(patterns=names.patterns, excluded=declared)
            text = None if met is None else string_terminal(met, normal.document.name)
            found += [] if text is None else [text]
        return found


def _if(text: str, conditions: list[str]) -> str:
    """An option of a rule with a parameter."""
    found = ""
    for condition in conditions:
        found = f"and({found}, {condition})" if found else condition
    return f"{text} %if {found}" if found else text


def _are_set(bits: int) -> list[str]:
    return [f"is_ones([{first}:{end}])" for first, end in _ranges(bits)]


def _are_clear(bits: int) -> list[str]:
    return [f"is_zeros([{first}:{end}])" for first, end in _ranges(bits)]


def _ranges(bits: int) -> Iterator[tuple[int, int]]:
    """The ranges of bits that are set, their ends excluded."""
    place = 0
    while bits >> place:
        place += (bits >> place & -(bits >> place)).bit_length() - 1
        end = place + (~(bits >> place) & (bits >> place) + 1).bit_length() - 1
        yield place, end
        place = end
