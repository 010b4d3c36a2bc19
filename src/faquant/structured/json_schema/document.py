"""A schema as a document: its size, the places of its parts, and its references."""

import json
import math
from functools import cached_property
from typing import Any
from urllib.parse import unquote, urljoin

from ...errors import UsageError
from .keywords import check_keywords, subschemas

MAX_BYTES = 256 << 10
MAX_DEPTH = 64
_NAMES = {"$anchor", "$dynamicAnchor", "$id", "id"}


class Document:
    """A parsed schema.

    Attributes:
        text: the schema as JSON text.
        root: the schema.
        places: the place of each schema in it ("/properties/a"), by the schema's `id()`.

    Raises:
        UsageError: it is not a JSON schema, too large or too deep, or, if strict, has a key that is probably a
            misspelled keyword.
    """

    def __init__(self, text: str, name: str, strict: bool) -> None:
        self.text, self.name, self._strict = text, name, strict
        check_text(name, text)
        try:
            self.root = json.loads(text, parse_float=_finite, parse_constant=_finite)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{name} is not valid JSON: {str(error)[:200]}.") from None
        if not isinstance(self.root, dict):
            raise UsageError(f"{name} must be a JSON object.")
        if _depth(self.root) > MAX_DEPTH:
            raise UsageError(f"{name} is nested more than {MAX_DEPTH} levels deep.")
        self.places: dict[int, str] = {}
        self._resources: dict[int, dict[str, Any]] = {}
        self._uris: dict[int, str] = {id(self.root): _identity(self.root)}
        self._named: dict[str, dict[str, Any]] = {"": self.root, self._uris[id(self.root)]: self.root}
        self._enter("", self.root, self.root)

    def target(self, schema: dict[str, Any], reference: str) -> Any:
        """The schema that a reference in `schema` names. Raises: UsageError: it is not part of the document."""
        resource = self._resources[id(schema)]
        uri, _, fragment = urljoin(self._uris[id(resource)], reference).partition("#")
        if reference.startswith("#"):
            uri, fragment = self._uris[id(resource)], reference[1:]
        bases = [resource, self.root] if reference.startswith("#") else [self._named.get(uri)]
        for base in bases:
            found = None if base is None else self._part(base, uri, unquote(fragment))
            if found is not None:
                if isinstance(found, dict) and id(found) not in self.places:
                    self._enter(f"/{fragment.lstrip('/')}", found, base or self.root)
                return found
        raise UsageError(
            f"{self.name} refers to {reference[:200]!r} at {self.where(schema)}, which is not "
            "part of the schema; copy it into $defs."
        )

    def where(self, schema: object) -> str:
        """The place of a schema, for messages."""
        return self.places.get(id(schema), "")[:200] or "its top"

    @cached_property
    def has_sorted_keys(self) -> bool:
        """Whether a program has sorted all keys: names are listed by `required` in another order than in `properties`.

        The order of properties is then not the author's.
        """
        is_listed_otherwise = False
        work = [self.root]
        while work:
            part = work.pop()
            if isinstance(part, dict):
                if list(part) != sorted(part):
                    return False
                required, properties = part.get("required"), part.get("properties")
                if isinstance(required, list) and isinstance(properties, dict):
                    listed = [name for name in required if isinstance(name, str) and name in properties]
                    is_listed_otherwise |= listed != sorted(listed)
            work += _children(part)
        return is_listed_otherwise

    def _part(self, base: dict[str, Any], uri: str, fragment: str) -> Any:
        if fragment and not fragment.startswith("/"):
            return self._named.get(f"{uri}#{fragment}")
        found: Any = base
        for key in fragment.split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, dict) and key in found:
                found = found[key]
            else:
                return None
        return found if isinstance(found, dict | bool) else None

    def _enter(self, place: str, schema: Any, resource: dict[str, Any]) -> None:
        if not isinstance(schema, dict) or id(schema) in self.places:
            return
        check_keywords(self.name, place, schema, self._strict)
        if schema is not resource and _identity(schema):
            self._uris[id(schema)] = urljoin(self._uris[id(resource)], _identity(schema))
            self._named[self._uris[id(schema)]] = resource = schema
        for key in _NAMES & schema.keys():
            if isinstance(schema.get(key), str) and (key.endswith("nchor") or schema[key].startswith("#")):
                self._named.setdefault(f"{self._uris[id(resource)]}#{schema[key].lstrip('#')}", schema)
        self.places[id(schema)] = place
        self._resources[id(schema)] = resource
        for end, part in subschemas(schema):
            self._enter(place + end, part, resource)


def text_of(value: object, name: str) -> str:
    """A schema as JSON text, if it is not text already. Raises: UsageError: it is not JSON."""
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{name} is not valid JSON: {str(error)[:200]}.") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a number that JSON schemas can have")
    return value


def check_text(name: str, value: object) -> None:
    """Raises: UsageError: `value` is not a string, or is empty, too large or invalid Unicode."""
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name} must be a non-empty string.")
    size = len(value.encode("utf-8", "replace"))
    if size > MAX_BYTES or not is_unicode(value):
        raise UsageError(f"{name} must be valid Unicode of at most {MAX_BYTES} bytes; it has {size}.")


def is_unicode(text: str) -> bool:
    """Whether a text has no unpaired surrogates, which JSON can contain but UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _identity(schema: dict[str, Any]) -> str:
    """The URI of a schema that is a resource of its own; empty if it is none."""
    uri = schema.get("$id", schema.get("id"))
    return uri.removesuffix("#") if isinstance(uri, str) and not uri.startswith("#") else ""


def _depth(value: object) -> int:
    level, depth = [value], 0
    while level:
        depth += 1
        level = [item for part in level for item in _children(part)]
    return depth


def _children(value: object) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
