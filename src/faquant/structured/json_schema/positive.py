"""What a schema demands that holds."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ..patterns.pattern import Pattern, compile_pattern
from ..patterns.syntax import PatternError
from .formats import format_pattern
from .forms import (
    ARRAY,
    KINDS,
    NUMBER,
    OBJECT,
    STRING,
    ArrayForm,
    Form,
    NumberForm,
    ObjectForm,
    Option,
    Scope,
    State,
    StringForm,
    Value,
)
from .interfaces import Normal
from .keywords import REFERENCES
from .numbers import Bound

_OF_TYPE = {"boolean": frozenset({"true", "false"}), "integer": frozenset({"number"})}
_OF_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_OF_STRINGS = ("minLength", "maxLength", "pattern", "format")
_OF_ARRAYS = ("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains")
_OF_OBJECTS = ("properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties")


def option(normal: Normal, schema: dict[str, Any]) -> Option:
    """The form of a schema, and the literals that it demands besides."""
    literals: list[int] = []
    form = _form(normal, schema)
    for key in schema:
        if key in REFERENCES:
            literals += normal.state(normal.document.target(schema, schema[key]))
        elif key == "allOf":
            literals += [literal for part in schema["allOf"] for literal in normal.state(part)]
    if "anyOf" in schema:
        literals += normal.choice(map(normal.state, schema["anyOf"]), normal.at("anyOf", schema))
    if "oneOf" in schema:
        literals += _one_of(normal, schema)
    if "not" in schema:
        literals += normal.opposite(normal.state(schema["not"]), normal.at("not", schema))
    if "if" in schema and schema.keys() & {"then", "else"}:
        literals += _by_cases(normal, schema)
    literals += _dependencies(normal, schema)
    return form, tuple(literals)


def kinds_of(schema: Mapping[str, Any]) -> tuple[frozenset[str], bool]:
    """The kinds of a schema's types, and whether numbers must be integers."""
    names = schema.get("type", ())
    names = [names] if isinstance(names, str) else names
    kinds = frozenset().union(*(_OF_TYPE.get(name, {name}) for name in names)) if names else KINDS
    return kinds, "integer" in names and "number" not in names


def values_of(schema: Mapping[str, Any]) -> tuple[Value, ...] | None:
    """The values of enum and const; None if there are neither."""
    values = None if "enum" not in schema else tuple(dict.fromkeys(map(Value, schema["enum"])))
    if "const" in schema:
        const = Value(schema["const"])
        values = (const,) if values is None or const in values else ()
    return values


def bounds_of(schema: Mapping[str, Any]) -> tuple[Bound | None, Bound | None]:
    """The bounds of numbers, also in the way of draft 4."""
    found: list[Bound | None] = []
    for inclusive, exclusive, choose in (("minimum", "exclusiveMinimum", max), ("maximum", "exclusiveMaximum", min)):
        bound, strict = schema.get(inclusive), schema.get(exclusive, False)
        bounds = [] if bound is None else [(Fraction(bound), strict is True)]
        bounds += [] if isinstance(strict, bool) else [(Fraction(strict), True)]
        sign = 1 if choose is max else -1
        found.append(max(bounds, key=lambda one: (one[0] * sign, one[1])) if bounds else None)
    return found[0], found[1]


def pattern_of(normal: Normal, schema: Mapping[str, Any]) -> Pattern | None:
    """The pattern of a schema; None if there is none, or none that is supported."""
    try:
        return compile_pattern(schema["pattern"]) if "pattern" in schema else None
    except PatternError as error:
        normal.leave_out(normal.at("pattern", schema), str(error))
        return None


def name_patterns(normal: Normal, schema: Mapping[str, Any]) -> tuple[Pattern, ...]:
    """The patterns of patternProperties that are supported."""
    found = []
    for pattern in schema.get("patternProperties", ()):
        try:
            found.append(compile_pattern(pattern))
        except PatternError as error:
            normal.leave_out(normal.at("patternProperties", schema), str(error))
    return tuple(found)


def array_form(normal: Normal, schema: Mapping[str, Any]) -> tuple[ArrayForm, bool]:
    """The form of arrays, and whether a keyword is about all items after the first ones."""
    items, prefix = schema.get("items"), schema.get("prefixItems", ())
    if isinstance(items, list):
        prefix, items = items, schema.get("additionalItems")
    least, most = _counts(schema, "minItems", "maxItems")
    contains: tuple[tuple[State, int, int | None], ...] = ()
    if "contains" in schema:
        bounds = (int(schema.get("minContains", 1)), schema.get("maxContains"))
        contains = ((normal.state(schema["contains"]), bounds[0], None if bounds[1] is None else int(bounds[1])),)
    rest = normal.state(True if items is None else items)
    unique = schema.get("uniqueItems", False)
    return ArrayForm(tuple(map(normal.state, prefix)), rest, least, most, unique, contains), items is not None


def _form(normal: Normal, schema: Mapping[str, Any]) -> Form:
    kinds, is_integer = kinds_of(schema)
    number, string, array, objects = NUMBER, STRING, ARRAY, OBJECT
    if "number" in kinds and (is_integer or any(key in schema for key in _OF_NUMBERS)):
        multiples = (Fraction(str(schema["multipleOf"])),) if "multipleOf" in schema else ()
        number = NumberForm(is_integer or None, *bounds_of(schema), multiples)
    if "string" in kinds and any(key in schema for key in _OF_STRINGS):
        patterns = [pattern_of(normal, schema), format_pattern(schema["format"]) if "format" in schema else None]
        least, most = _counts(schema, "minLength", "maxLength")
        string = StringForm(least, most, tuple((each, True) for each in patterns if each is not None))
    if "array" in kinds and any(key in schema for key in _OF_ARRAYS):
        array, _ = array_form(normal, schema)
    if "object" in kinds and any(key in schema for key in (*_OF_OBJECTS, "propertyNames")):
        objects = _object_form(normal, schema)
    for part, kind in ((string, "string"), (array, "array"), (objects, "object")):
        if part.most is not None and part.least > part.most:
            kinds -= {kind}
    values = values_of(schema)
    if values is not None:
        values = tuple(value for value in values if value.kind in kinds)
        kinds = frozenset(value.kind for value in values)
    return Form(kinds, number, string, array, objects, values)


def _object_form(normal: Normal, schema: Mapping[str, Any]) -> ObjectForm:
    properties = {name: normal.state(part) for name, part in schema.get("properties", {}).items()}
    patterns = []
    for pattern, part in schema.get("patternProperties", {}).items():
        try:
            patterns.append((compile_pattern(pattern), normal.state(part)))
        except PatternError as error:
            normal.leave_out(normal.at("patternProperties", schema), str(error))
    scopes: tuple[Scope, ...] = ()
    if schema.get("additionalProperties", True) is not True:
        rest = normal.state(schema["additionalProperties"])
        scopes = (Scope(frozenset(properties), tuple(each for each, _ in patterns), rest),) if rest else ()
    least, most = _counts(schema, "minProperties", "maxProperties")
    names = normal.state(schema.get("propertyNames", True))
    if names:
        names |= normal.strings
    required = tuple(dict.fromkeys(schema.get("required", ())))
    chains = tuple((name,) for name in properties) if normal.document.has_sorted_keys else (tuple(properties),)
    return ObjectForm(properties, chains if properties else (), tuple(patterns), scopes, required, least, most, names)


def _one_of(normal: Normal, schema: Mapping[str, Any]) -> State:
    states = list(map(normal.state, schema["oneOf"]))
    cause = normal.at("oneOf", schema)
    options = []
    for place, state in enumerate(states):
        others = [other for number, other in enumerate(states) if number != place]
        overlapping = [other for other in others if other == state or not normal.is_empty(state | other)]
        if state in overlapping:
            continue
        options.append(state.union(*(normal.opposite(other, cause) for other in overlapping)))
    return normal.choice(options, cause, wider=states)


def _by_cases(normal: Normal, schema: Mapping[str, Any]) -> State:
    cause, condition = normal.at("if", schema), normal.state(schema["if"])
    then, otherwise = normal.state(schema.get("then", True)), normal.state(schema.get("else", True))
    return normal.choice([condition | then, normal.opposite(condition, cause) | otherwise], cause)


def _dependencies(normal: Normal, schema: Mapping[str, Any]) -> set[int]:
    literals: set[int] = set()
    for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
        for name, wanted in schema.get(keyword, {}).items():
            if isinstance(wanted, list):
                state = normal.of_form(requiring(name, *wanted))
            else:
                state = normal.of_form(requiring(name)) | normal.state(wanted)
            without = normal.of_form(absent(normal, name))
            literals |= normal.choice([without, state], normal.at(keyword, schema))
    return literals


def requiring(*names: str) -> Form:
    """Objects with these properties."""
    return Form(frozenset({"object"}), object=ObjectForm(required=tuple(dict.fromkeys(names))))


def absent(normal: Normal, name: str) -> Form:
    """All values but objects with this property."""
    return Form(object=ObjectForm({name: normal.state(False)}))


def _counts(schema: Mapping[str, Any], least: str, most: str) -> tuple[int, int | None]:
    return int(schema.get(least, 0)), int(schema[most]) if most in schema else None
