"""The grammar of normal forms, in llguidance's Lark dialect: a rule for each state.

Objects have their properties in the order of the schema, and other names after them. Each name has one spelling.
"""

import json
import math
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from ...errors import UsageError
from . import grammar_arrays, grammar_objects
from .forms import ARRAY, CONSTANTS, OBJECT, Form, NumberForm, State, Value
from .interfaces import Normal
from .numbers import multiples_of_inverse
from .scalars import (
    COMMA,
    TERMINALS,
    integer_bounds,
    json_text,
    literal,
    number_terminal,
    string_terminal,
    value_terminal,
)

# The whitespace that usual printers write, but no endless run of it.
WHITESPACE = r"\n? {0,16}"
_HEAD = f'%llguidance {{"ignore_once": true}}\n%ignore /{WHITESPACE}/'
_ANY = """any: ANY | any_array | any_object
ANY: "null" | "true" | "false" | NUMBER | STRING
any_array: "[" (any ("," any)*)? "]"
any_object: "{" (any_member ("," any_member)*)? "}"
any_member: STRING ":" any"""
_EXACT = 2**53
_MOST_STEPS = 6
_MOST_STEP, _MOST_PLACES = 1 << 32, 8
_DEEPEST = 1000
_NAMES = re.compile(r'"(?:[^"\\]|\\.)*"|/(?:[^/\\]|\\.)+/|\b([rsp][0-9]+)\b')


class Grammar:
    """Writes the rules for the states that are reached.

    Attributes:
        has_open_names: whether objects may have names that the grammar does not list, and so the same name twice.
        unique: the states whose arrays may have the same item twice in the grammar, but must not.
        examples: texts of strings that have a pattern.
    """

    def __init__(self, normal: Normal) -> None:
        self.normal = normal
        self.has_open_names = False
        self.unique: set[State] = set()
        self.examples: dict[str, None] = {}
        self._rules: list[str] = []
        self._new_rules: dict[str, str] = {}
        self._terminals: dict[str, str] = {}
        self._names: dict[State, str] = {frozenset(): "any"}
        self._waiting: list[State] = []
        self._count = 0
        self._uses_any = False

    def text(self, state: State) -> str:
        """The grammar of values of a state; its first rule is `start`."""
        first = self.rule(state)
        while self._waiting:
            each = self._waiting.pop()
            self._rules.append(f"{self._names[each]}: {self._alternatives(each) or self.terminal(_NOTHING)}")
        if self._uses_any:
            self.has_open_names = True
            self._rules.append(_ANY)
        if len(self._rules) > _DEEPEST and _depth(self._rules) > _DEEPEST:
            raise UsageError(f"{self.normal.document.name} is too complex: its references are nested too deep.")
        terminals = [f"{name}: {text}" for text, name in self._terminals.items()]
        return "\n".join([_HEAD, f"start: {first}", *self._rules, *terminals, TERMINALS])

    def rule(self, state: State) -> str:
        """The name of the rule for a state."""
        self._uses_any |= not state
        if state not in self._names:
            if self._is_scalar(state):
                self._names[state] = self._alternatives(state) or self.terminal(_NOTHING)
            else:
                self._names[state] = f"s{len(self._names)}"
                self._waiting.append(state)
        return self._names[state]

    def _is_scalar(self, state: State) -> bool:
        """Whether one terminal has all values of a state."""
        return all(
            not form.kinds & {"array", "object"} and not ("number" in form.kinds and form.number.multiples)
            for form in self.normal.forms(state)
        )

    def new_rule(self, text: str) -> str:
        """Add a rule, unless there is one with this text; returns its name."""
        name = self._new_rules.get(text)
        if name is None:
            self._count += 1
            name = self._new_rules[text] = f"r{self._count}"
            self._rules.append(f"{name}: {text}")
        return name

    def new_parametric(self, options: list[str]) -> str:
        """Add a rule with a parameter, which the options can name as `{name}`; returns its name."""
        self._count += 1
        name = f"p{self._count}"
        self._rules.append(f"{name}::_ : " + " | ".join(option.replace("{name}", name) for option in options))
        return name

    def terminal(self, text: str) -> str:
        """The name of the terminal with this text."""
        if text in ("STRING", "NUMBER"):
            return text
        return self._terminals.setdefault(text, f"T{len(self._terminals)}")

    def values(self, state: State, most: int) -> list[Value] | None:
        """All values of a state, if there are at most `most`; else None."""
        found: dict[Value, None] = {}
        for form in self.normal.forms(state):
            if form.values is not None:
                found |= dict.fromkeys(form.values)
                continue
            for kind in form.kinds:
                if kind == "number" and form.number.integral and not form.number.multiples:
                    low, high = integer_bounds(form.number)
                    if low is None or high is None or high - low >= most:
                        return None
                    integers = (value for value in range(low, high + 1) if value not in form.number.excluded)
                    found |= dict.fromkeys(map(Value, integers))
                elif kind in CONSTANTS:
                    found[Value(CONSTANTS[kind])] = None
                else:
                    return None
        return list(found) if len(found) <= most else None

    def value(self, value: Any) -> str:
        """The expression for one value."""
        if isinstance(value, list):
            return f'"[" {COMMA.join(map(self.value, value))} "]"'
        if isinstance(value, dict):
            parts = [f'{self.key(name)} ":" {self.value(part)}' for name, part in value.items()]
            return f'"{{" {COMMA.join(parts)} "}}"'
        return self.terminal(value_terminal(value))

    def key(self, name: str) -> str:
        """The expression for a name."""
        return literal(json_text(name))

    def _alternatives(self, state: State) -> str:
        terminals: dict[str, None] = {}
        others: dict[str, None] = {}
        for form in self.normal.forms(state):
            if form.values is None:
                for kind in sorted(form.kinds):
                    self._add(form, kind, state, terminals, others)
                continue
            for value in (each.value for each in form.values):
                if isinstance(value, list | dict):
                    others[self.value(value)] = None
                else:
                    terminals[value_terminal(value)] = None
        if terminals:
            others[self.terminal(" | ".join(terminals))] = None
        return " | ".join(others)

    def _add(self, form: Form, kind: str, state: State, terminals: dict[str, None], others: dict[str, None]) -> None:
        if kind in CONSTANTS:
            terminals[f'"{kind}"'] = None
        elif kind == "array":
            self._uses_any |= form.array is ARRAY
            is_any = form.array is ARRAY
            others |= dict.fromkeys(["any_array"] if is_any else grammar_arrays.options(self, form.array, state))
        elif kind == "object":
            self._uses_any |= form.object is OBJECT
            is_any = form.object is OBJECT
            others |= dict.fromkeys(["any_object"] if is_any else grammar_objects.options(self, form.object))
        elif kind == "number" and form.number.multiples:
            others |= dict.fromkeys(self._multiples(form.number))
        else:
            is_number = kind == "number"
            text = (
                number_terminal(form.number) if is_number else string_terminal(form.string, self.normal.document.name)
            )
            terminals |= dict.fromkeys([] if text is None else [text])
            if not is_number:
                self.examples |= dict.fromkeys(
                    text for pattern, wanted in form.string.patterns if wanted and (text := pattern.example())
                )

    def _multiples(self, form: NumberForm) -> Iterable[str]:
        """llguidance's expression for multiples of a number."""
        steps = [step for step in form.multiples if step != 1]
        is_integer = form.integral or all(step.denominator == 1 for step in form.multiples)
        if form.integral is False or form.excluded:
            self.normal.leave_out("'multipleOf' next to 'not'")
            steps = []
        low, high = form.low, form.high
        if any(bound is not None and abs(bound[0]) > _EXACT for bound in (low, high)):
            self.normal.leave_out("'multipleOf' with a bound beyond 2^53")
            steps = []
        if not steps:
            text = number_terminal(NumberForm(True if is_integer else form.integral, low, high, (), form.excluded))
            return [] if text is None else [self.terminal(text)]
        step = steps[0] if len(steps) == 1 else _common_multiple(steps)
        if not _is_read(step):
            self.normal.leave_out(f"'multipleOf' {float(step):g}", "its multiples have no grammar")
            text = number_terminal(NumberForm(True if is_integer else form.integral, low, high))
            return [] if text is None else [self.terminal(text)]
        inverse = multiples_of_inverse(step.denominator) if step.numerator == 1 else None
        if inverse is not None and not form.integral:
            bounded = number_terminal(NumberForm(None, low, high))
            return [] if bounded is None else [self.terminal(f"({bounded}) & /{inverse}/")]
        found = []
        for each in [step] if is_integer else _steps(step):
            schema: dict[str, Any] = {"type": "integer" if is_integer else "number", "multipleOf": _number(each)}
            if low is not None:
                schema["minimum"] = _number((low[0] // each + 1 if low[1] else -(-low[0] // each)) * each)
            if high is not None:
                schema["maximum"] = _number((-(-high[0] // each) - 1 if high[1] else high[0] // each) * each)
            if low is None or high is None or schema["minimum"] <= schema["maximum"]:
                options = {"x-guidance": {"whitespace_pattern": WHITESPACE, "lenient": False}}
                found.append("%json " + json.dumps(schema | options))
        return found


def _depth(rules: list[str]) -> int:
    """How deep llguidance nests calls to compile the rules: it compiles each when it first meets its name."""
    names = {rule.partition(":")[0]: [name for name in _NAMES.findall(rule) if name] for rule in rules}
    seen: set[str] = set()
    path = [iter(["s1"])]
    deepest = 0
    while path:
        name = next(path[-1], None)
        if name is None:
            path.pop()
        elif name not in seen:
            seen.add(name)
            path.append(iter(names.get(name, ())))
            deepest = max(deepest, len(path))
    return deepest


def _common_multiple(steps: list[Fraction]) -> Fraction:
    return Fraction(math.lcm(*(step.numerator for step in steps)), math.gcd(*(step.denominator for step in steps)))


def _steps(step: Fraction) -> list[Fraction]:
    """The steps between multiples with as many decimals as the step, and with fewer.

    llguidance writes multiples with none or all decimals of the step: of 0.75, 1.50 but not 1.5.
    """
    found = [step]
    places = next(count for count in range(step.denominator.bit_length() + 1) if (step * 10**count).denominator == 1)
    for count in range(places - 1, max(places - _MOST_STEPS, 0), -1):
        found.append(_common_multiple([step, Fraction(1, 10**count)]))
    return [each for each in found if _is_read(each)]


def _is_read(step: Fraction) -> bool:
    """Whether llguidance reads a step as it is: it multiplies a double by 10 until nothing is left behind the point,
    and counts in 32 bits."""
    value, places = float(step), 0
    while value % 1:
        value, places = value * 10, places + 1
    return value < _MOST_STEP and places <= _MOST_PLACES and value == step * 10**places


def _number(value: Fraction) -> float:
    return int(value) if value.denominator == 1 else float(value)


_NOTHING = r"/[^\x00-\x{10ffff}]/"
