"""What holds if a schema does not.

One of its keywords must be violated. Keywords whose opposite is no form are passed over, which makes the result
narrower: values that violate only these are not admitted.
"""

from collections.abc import Iterator
from functools import partial
from itertools import combinations
from typing import Any

from .forms import (
    ANY_FORM,
    KINDS,
    ArrayForm,
    Form,
    NumberForm,
    ObjectForm,
    Option,
    State,
    StringForm,
    Wanted,
)
from .interfaces import Normal
from .keywords import REFERENCES
from .positive import absent, bounds_of, kinds_of, name_patterns, pattern_of, requiring, values_of
from .values import other_values

_MOST_PAIRS = 4
_ANYTHING: State = frozenset()


def options(normal: Normal, schema: dict[str, Any]) -> list[Option]:
    """The ways to violate a schema."""
    found = [(form, _ANYTHING) for form in _forms(normal, schema)]
    found += [(ANY_FORM, state) for state in _states(normal, schema)]
    found += _parts(normal, schema)
    ways = [(form, tuple(sorted(state, key=abs))) for form, state in found if form.kinds and 1 not in state]
    if not ways and schema.keys() & _WITHOUT_OPPOSITE:
        normal.leave_out(f"the opposite of the schema at {normal.document.where(schema)}")
        return [(ANY_FORM, ())]
    return ways


_WITHOUT_OPPOSITE = {
    *("multipleOf", "format", "uniqueItems", "contains", "patternProperties", "additionalProperties", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties", "items", "prefixItems", "additionalItems", "oneOf", "pattern"),
}


def _forms(normal: Normal, schema: dict[str, Any]) -> Iterator[Form]:
    kinds, is_integer = kinds_of(schema)
    yield Form(KINDS - kinds)
    if is_integer or schema.get("multipleOf") == 1:
        yield Form(frozenset({"number"}), number=NumberForm(integral=False))
    values = values_of(schema)
    if values is not None:
        yield other_values([value.value for value in values])
    low, high = bounds_of(schema)
    if low is not None:
        yield _numbers(NumberForm(high=(low[0], not low[1])))
    if high is not None:
        yield _numbers(NumberForm(low=(high[0], not high[1])))
    if schema.get("minLength"):
        yield _strings(StringForm(most=int(schema["minLength"]) - 1))
    if "maxLength" in schema:
        yield _strings(StringForm(least=int(schema["maxLength"]) + 1))
    if "pattern" in schema:
        pattern = pattern_of(normal, schema)
        if pattern is not None:
            yield _strings(StringForm(patterns=((pattern, False),)))
    if schema.get("minItems"):
        yield _arrays(ArrayForm(most=int(schema["minItems"]) - 1))
    if "maxItems" in schema:
        yield _arrays(ArrayForm(least=int(schema["maxItems"]) + 1))
    if schema.get("minProperties"):
        yield _objects(ObjectForm(most=int(schema["minProperties"]) - 1))
    if "maxProperties" in schema:
        yield _objects(ObjectForm(least=int(schema["maxProperties"]) + 1))
    for name in schema.get("required", ()):
        yield _objects(absent(normal, name).object)
    wanted = schema.get("dependentRequired", {}) | schema.get("dependencies", {})
    for name, names in wanted.items():
        for other in names if isinstance(names, list) else ():
            yield _objects((requiring(name).object & absent(normal, other).object) or ObjectForm())


def _opposite(normal: Normal, schema: dict[str, Any], part: Any) -> State:
    return normal.opposite(normal.state(part), normal.at("not", schema))


def _states(normal: Normal, schema: dict[str, Any]) -> Iterator[State]:
    opposite = partial(_opposite, normal, schema)
    for reference in REFERENCES:
        if reference in schema:
            yield opposite(normal.document.target(schema, schema[reference]))
    yield from map(opposite, schema.get("allOf", ()))
    if "anyOf" in schema:
        yield frozenset().union(*map(opposite, schema["anyOf"]))
    if "oneOf" in schema:
        yield frozenset().union(*map(opposite, schema["oneOf"]))
        if len(schema["oneOf"]) <= _MOST_PAIRS:
            yield from (one | other for one, other in combinations(map(normal.state, schema["oneOf"]), 2))
    if "not" in schema:
        yield normal.state(schema["not"])
    if "if" in schema:
        condition = normal.state(schema["if"])
        if "then" in schema:
            yield condition | opposite(schema["then"])
        if "else" in schema:
            yield opposite(schema["if"]) | opposite(schema["else"])


def _parts(normal: Normal, schema: dict[str, Any]) -> Iterator[tuple[Form, State]]:
    opposite = partial(_opposite, normal, schema)
    for name, part in schema.get("properties", {}).items():
        state = opposite(part)
        if not normal.is_empty(state):
            yield _objects(ObjectForm({name: state}, required=(name,))), _ANYTHING
    names = frozenset(schema.get("properties", ()))
    if schema.get("additionalProperties", True) is not True:
        patterns = tuple((pattern, False) for pattern in name_patterns(normal, schema))
        wanted = Wanted(state=opposite(schema["additionalProperties"]), names=names, patterns=patterns)
        yield _objects(ObjectForm(wanted=(wanted,))), _ANYTHING
    for pattern in name_patterns(normal, schema):
        wanted = Wanted(state=opposite(schema["patternProperties"][pattern.source]), patterns=((pattern, True),))
        yield _objects(ObjectForm(wanted=(wanted,))), _ANYTHING
    if "propertyNames" in schema:
        wanted = Wanted(opposite(schema["propertyNames"]) | normal.strings)
        yield _objects(ObjectForm(wanted=(wanted,))), _ANYTHING
    for name, part in (schema.get("dependentSchemas", {}) | schema.get("dependencies", {})).items():
        if not isinstance(part, list):
            yield _objects(requiring(name).object), opposite(part)
    items, prefix = schema.get("items"), schema.get("prefixItems", ())
    if isinstance(items, list):
        prefix, items = items, None
    for place, part in enumerate(prefix):
        state = opposite(part)
        if not normal.is_empty(state):
            yield _arrays(ArrayForm((_ANYTHING,) * place + (state,), least=place + 1)), _ANYTHING
    if items is not None and not prefix:
        yield _arrays(ArrayForm(contains=((opposite(items), 1, None),))), _ANYTHING
    if "contains" in schema and int(schema.get("minContains", 1)) == 1:
        yield _arrays(ArrayForm(items=opposite(schema["contains"]))), _ANYTHING


def _numbers(form: NumberForm) -> Form:
    return Form(frozenset({"number"}), number=form)


def _strings(form: StringForm) -> Form:
    return Form(frozenset({"string"}), string=form)


def _arrays(form: ArrayForm) -> Form:
    return Form(frozenset({"array"}), array=form)


def _objects(form: ObjectForm) -> Form:
    return Form(frozenset({"object"}), object=form)
