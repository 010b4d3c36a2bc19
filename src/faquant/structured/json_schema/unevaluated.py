"""unevaluatedProperties and unevaluatedItems, which depend on the schemas that are fulfilled in the same place."""

from collections.abc import Iterable
from typing import Any

from ..patterns.pattern import Pattern
from . import positive
from .forms import ArrayForm, Form, ObjectForm, Scope
from .interfaces import Normal


def with_unevaluated(normal: Normal, fulfilled: list[dict[str, Any]], form: Form) -> Form:
    """The form with these keywords of the schemas that are fulfilled."""
    for schema in fulfilled:
        if "unevaluatedProperties" in schema and "object" in form.kinds:
            names, patterns, is_all = _names(normal, schema, _Place(normal, fulfilled, schema))
            if not is_all:
                scope = Scope(names, patterns, normal.state(schema["unevaluatedProperties"]))
                form = _met(form, Form(object=ObjectForm(scopes=(scope,))))
        if "unevaluatedItems" in schema and "array" in form.kinds:
            count = _items(normal, schema, _Place(normal, fulfilled, schema))
            if count is not None:
                items = normal.state(schema["unevaluatedItems"])
                form = _met(form, Form(array=ArrayForm((frozenset(),) * count, items)))
    return form


class _Place:
    """The schemas that are fulfilled where `top` is, each of which is visited once."""

    def __init__(self, normal: Normal, fulfilled: list[dict[str, Any]], top: dict[str, Any]) -> None:
        self.top = top
        self._normal = normal
        self._by_state = {normal.state(schema): schema for schema in fulfilled}
        self._visited = {id(top)}

    def applied(self, schema: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """The schemas that are applied in the place of `schema`, fulfilled, and not visited yet."""
        parts = [part for key in ("allOf", "anyOf", "oneOf") for part in schema.get(key, ())]
        parts += [schema[key] for key in ("if", "then", "else") if key in schema]
        for key in ("dependentSchemas", "dependencies"):
            parts += [part for part in schema.get(key, {}).values() if isinstance(part, dict)]
        parts += [self._normal.document.target(schema, schema["$ref"])] if "$ref" in schema else []
        for part in parts:
            found = self._by_state.get(self._normal.state(part))
            if found is not None and id(found) not in self._visited:
                self._visited.add(id(found))
                yield found


def _names(normal: Normal, schema: dict[str, Any], place: _Place) -> tuple[frozenset[str], tuple[Pattern, ...], bool]:
    """The names and patterns that are evaluated, and whether all names are."""
    names, patterns = frozenset(schema.get("properties", ())), positive.name_patterns(normal, schema)
    is_all = "additionalProperties" in schema or (schema is not place.top and "unevaluatedProperties" in schema)
    for part in place.applied(schema):
        more, others, is_more = _names(normal, part, place)
        names, patterns, is_all = names | more, patterns + others, is_all or is_more
    return names, patterns, is_all


def _items(normal: Normal, schema: dict[str, Any], place: _Place) -> int | None:
    """The number of items that are evaluated; None: all."""
    form, is_all = positive.array_form(normal, schema)
    count: int | None = len(form.prefix)
    if is_all or (schema is not place.top and "unevaluatedItems" in schema):
        count = None
    for part in place.applied(schema):
        more = _items(normal, part, place)
        count = None if more is None or count is None else max(count, more)
    return count


def _met(form: Form, other: Form) -> Form:
    return (form & other) or Form(frozenset())
