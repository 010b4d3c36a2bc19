"""Schemas to normal forms: a conjunction of schemas becomes a list of alternatives without applicators.

A part of a schema that has no normal form is left out and listed in `unenforced`, so the forms may then admit too much;
if strict, it is an error instead. What is negated may become narrower without notice: it never admits too much.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...errors import UsageError
from . import negative, objects, positive
from .document import Document
from .forms import ANY_FORM, ARRAY, OBJECT, Form, Option, State
from .keywords import CONSTRAINING
from .unevaluated import with_unevaluated
from .values import fits, holds, without_excluded
from .wanted import with_wanted

NOTHING: State = frozenset({1})
ANYTHING: State = frozenset()
_MOST_FORMS, _STEPS = 512, 8
_DEEPEST_CHECK = 16
_ALL_STEPS, _FEW_FORMS = 8_000, 8
"""After so many steps for a schema, of which few real ones need more than a hundred, few forms are too many."""


@dataclass(frozen=True)
class Choice:
    """A literal that one of the options fulfills; `wider`: options to use instead if there are too many forms."""

    options: tuple[State, ...]
    cause: str
    wider: tuple[State, ...] | None = None


class Normalizer:
    """Numbers the schemas of a document and finds the forms of their conjunctions.

    Attributes:
        unenforced: what the forms leave out, with its places.
        strings: the state of all strings.
    """

    def __init__(self, document: Document, strict: bool) -> None:
        self.document = document
        self.unenforced: dict[str, None] = {}
        self._strict = strict
        self._literals: list[Any] = [None, False]
        self._numbers: dict[Choice, int] = {}
        self._states: dict[int, State] = {}
        self._options: dict[int, list[Option]] = {1: []}
        self._forms: dict[State, list[Form]] = {}
        self._fitting_forms: dict[State, tuple[Form, ...]] = {}
        self._checked: set[State] = set()
        self._steps = 0
        self.strings = self.of_form(Form(frozenset({"string"})))

    def state(self, schema: Any) -> State:
        """The state of a schema: empty if it admits everything, else one literal."""
        if isinstance(schema, bool):
            return ANYTHING if schema else NOTHING
        visited = set()
        while id(schema) not in self._states and schema.keys() & CONSTRAINING == {"$ref"} and id(schema) not in visited:
            visited.add(id(schema))
            schema = self.document.target(schema, schema["$ref"])
            if isinstance(schema, bool):
                return self.state(schema)
        if id(schema) not in self._states:
            # References in a circle admit everything.
            is_free = id(schema) in visited or not schema.keys() & CONSTRAINING
            self._states[id(schema)] = ANYTHING if is_free else frozenset({self._new(schema)})
        return self._states[id(schema)]

    def choice(self, options: Iterable[State], cause: str, wider: Iterable[State] | None = None) -> State:
        """The state of values that fulfill one of the options."""
        states = tuple(option for option in dict.fromkeys(options) if option != NOTHING)
        if ANYTHING in states or len(states) < 2:
            return NOTHING if not states else ANYTHING if ANYTHING in states else states[0]
        choice = Choice(states, cause, None if wider is None else tuple(wider))
        if choice not in self._numbers:
            self._numbers[choice] = self._new(choice)
        return frozenset({self._numbers[choice]})

    def of_form(self, form: Form) -> State:
        """The state of values of a form."""
        return frozenset({self._new(form)})

    def opposite(self, state: State, cause: str) -> State:
        """The state of values that do not fulfill `state`; it may admit fewer."""
        if state in (ANYTHING, NOTHING):
            return ANYTHING if state == NOTHING else NOTHING
        return self.choice((frozenset({-literal}) for literal in state), cause)

    def leave_out(self, cause: str, why: str = "") -> None:
        """Note that something is not enforced. Raises: UsageError: if strict."""
        if self._strict:
            reason = f" because {why}" if why else ""
            raise UsageError(
                f"{self.document.name} has {cause}, which cannot be enforced{reason}; change or remove it."
            )
        self.unenforced[cause] = None

    def at(self, keyword: str, schema: Mapping[str, Any]) -> str:
        """A keyword with its place, for messages."""
        return f"{keyword!r} at {self.document.where(schema)}"

    def forms(self, state: State) -> tuple[Form, ...]:
        """The alternatives of a state; none if it admits nothing."""
        found = self._fitting_forms.get(state)
        if found is None:
            fitting = [each for form in self._all_forms(state) for each in self._fitting(form)]
            found = self._fitting_forms[state] = tuple(fitting)
        return found

    def _all_forms(self, state: State) -> list[Form]:
        """The alternatives of a state, also those that admit nothing."""
        if not state:
            return [ANY_FORM]
        found = self._forms.get(state)
        if found is None:
            found = [
                part
                for each in self._expanded(state)
                for part in self._spread(with_unevaluated(self, self._schemas(each[1]), each[0]))
            ]
            self._forms[state] = found
        return found

    def is_empty(self, state: State) -> bool:
        """Whether it is certain that the state admits nothing."""
        if not state or state in self._checked or len(self._checked) > _DEEPEST_CHECK:
            return state == NOTHING
        self._checked.add(state)
        try:
            return not self.forms(state)
        finally:
            self._checked.discard(state)

    def admits(self, state: State, value: Any) -> bool:
        """Whether a JSON value fulfills a state."""
        return not state or any(holds(self, form, value) for form in self._all_forms(state))

    def _new(self, literal: Any) -> int:
        self._literals.append(literal)
        return len(self._literals) - 1

    def options(self, literal: int) -> list[Option]:
        """The ways to fulfill a literal."""
        found = self._options.get(literal)
        if found is None:
            about = self._literals[abs(literal)]
            if isinstance(about, Choice):
                found = [(ANY_FORM, ordered(option)) for option in about.options]
            elif isinstance(about, Form):
                found = [(about, ())]
            else:
                found = [positive.option(self, about)] if literal > 0 else negative.options(self, about)
            self._options[literal] = found
        return found

    def _expanded(self, state: State) -> list[tuple[Form, State]]:
        """The forms of a state, each with the literals that it fulfills."""
        while True:
            found: list[tuple[Form, State]] = []
            work: list[tuple[Form, tuple[int, ...], State, tuple[int, ...]]] = [
                (ANY_FORM, ordered(state), frozenset(), ())
            ]
            steps = blamed = 0
            most = _MOST_FORMS if self._steps < _ALL_STEPS else _FEW_FORMS
            while work:
                steps += 1
                self._steps += 1
                reached = self._closed(*work.pop())
                if reached is None:
                    continue
                form, done, choices = reached
                if not choices:
                    found.append((form, done))
                else:
                    first, *_, blamed = sorted(choices * 2, key=lambda literal: len(self.options(literal)))
                    most = max(most, 2 * len(self.options(blamed)))
                    rest = tuple(literal for literal in choices if literal != first)
                    for option, literals in reversed(self.options(first)):
                        met = form & option
                        if met is not None:
                            work.append((met, literals, done, rest))
                if len(found) > most or steps > most * _STEPS:
                    break
            else:
                return found
            self._widen(blamed)

    def _closed(
        self, form: Form, literals: tuple[int, ...], done: State, choices: tuple[int, ...]
    ) -> tuple[Form, State, tuple[int, ...]] | None:
        """The form with all literals that can be fulfilled in one way; None if they contradict each other."""
        pending = list(reversed(literals))
        while pending:
            literal = pending.pop()
            if literal in done:
                continue
            options = self.options(literal)
            if -literal in done or not options:
                return None
            done |= {literal}
            if len(options) > 1:
                choices += (literal,)
                continue
            met = form & options[0][0]
            if met is None:
                return None
            form = met
            pending += reversed(options[0][1])
        return form, done, choices

    def _widen(self, literal: int) -> None:
        """Leave out a literal because it leads to too many forms."""
        about = self._literals[abs(literal)]
        wider = None
        if isinstance(about, Choice):
            cause, wider = about.cause, about.wider
        else:
            cause = f"the opposite of the schema at {self.document.where(about)}"
        self.leave_out(cause, "it has too many combinations")
        self._options[literal] = [(ANY_FORM, ordered(option)) for option in wider or (ANYTHING,)]
        if wider is not None:
            self._literals[abs(literal)] = Choice(wider, cause)
        self._forms.clear()
        self._fitting_forms.clear()

    def _schemas(self, done: State) -> list[dict[str, Any]]:
        """The schemas of the document that hold."""
        found = [self._literals[literal] for literal in sorted(done) if literal > 0]
        return [schema for schema in found if isinstance(schema, dict)]

    def _spread(self, form: Form) -> list[Form]:
        """The forms of a form whose objects must have members with some name."""
        if not form.object.wanted or form.values is not None:
            return [form]
        rest = [replace(form, kinds=form.kinds - {"object"})] if form.kinds != {"object"} else []
        objects_only = replace(form, kinds=form.kinds & {"object"})
        return rest + [replace(objects_only, object=each) for each in with_wanted(self, form.object)]

    def _fitting(self, form: Form) -> list[Form]:
        """The form without kinds and values that are impossible, in parts if it excludes arrays or objects."""
        if form.values is not None:
            values = tuple(value for value in form.values if fits(self, form, value.value))
            return [Form(form.kinds & {value.kind for value in values}, values=values)] if values else []
        if form.excluded:
            return [each for part in without_excluded(self, form) for each in self._fitting(part)]
        kinds = form.kinds
        if "array" in kinds and form.array is not ARRAY and not objects.is_possible_array(self, form.array):
            kinds -= {"array"}
        if "object" in kinds and form.object is not OBJECT and not objects.is_possible(self, form.object):
            kinds -= {"object"}
        if not kinds:
            return []
        return [form if kinds == form.kinds else replace(form, kinds=kinds)]


def ordered(state: State) -> tuple[int, ...]:
    """The literals: first those that hold, as in the document."""
    return tuple(sorted(state, key=lambda literal: (literal < 0, abs(literal))))
