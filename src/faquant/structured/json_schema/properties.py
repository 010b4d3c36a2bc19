"""Values of properties for formats that write strings as they are, and all other values as JSON."""

from dataclasses import dataclass
from functools import lru_cache

from .document import Document
from .forms import KINDS, Form
from .grammar import Grammar
from .normalize import Normalizer
from .scalars import literal, string_body


@dataclass(frozen=True)
class Property:
    """The values of a property.

    Attributes:
        kinds: the kinds of the values, perhaps more.
        strings: an expression of terminals for strings, as they are; None if there are none.
        others: the grammar of all other values, as JSON; None if there are none.
    """

    kinds: frozenset[str] = KINDS
    strings: str | None = None
    others: str | None = None


@lru_cache(maxsize=256)
def properties_of(schema: str, name: str) -> dict[str, Property]:
    """The properties of a schema that `compile_schema` has accepted, given as JSON text. Errors call it `name`.

    What the schema's own grammar does not enforce, these do not either.

    Raises:
        UsageError: a string has too many patterns.
    """
    document = Document(schema, name, strict=False)
    normal = Normalizer(document, strict=False)
    not_strings = normal.of_form(Form(KINDS - {"string"}))
    found = {}
    for key, part in document.root.get("properties", {}).items():
        state = normal.state(part)
        texts: dict[str, None] = {}
        for form in normal.forms(state | normal.strings):
            if form.values is not None:
                texts |= dict.fromkeys(literal(each.value) for each in form.values)
            else:
                body = string_body(form.string, name, is_plain=True)
                texts |= {} if body is None else {body.lark: None}
        others = state | not_strings
        kinds = frozenset().union(*(form.kinds for form in normal.forms(state)))
        grammar = Grammar(normal).text(others) if kinds - {"string"} else None
        found[key] = Property(kinds, " | ".join(texts) or None, grammar)
    return found
