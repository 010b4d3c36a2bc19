"""Checks finished answers against a schema, for what its grammar does not enforce."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs

from ...errors import UsageError
from .document import Document
from .keywords import CONSTRAINING, LISTS, NAMED, ONE, REFERENCES

_MOST_STEPS = 4096
"""Schemas that one value may have to be compared with. A check takes its time in the engine's thread."""
_BACKTRACKS = 10_000


class Checker:
    """Says what is wrong with answers.

    Raises:
        UsageError: the schema has an invalid pattern.
    """

    def __init__(self, document: Document) -> None:
        self._name = document.name
        self._schema = schema = _Translation(document).schema
        options = jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKS)
        try:
            self._validator = jsonschema_rs.Draft202012Validator(
                schema, validate_formats=False, pattern_options=options
            )
        except ValueError as error:
            raise UsageError(f"{document.name} is not a valid JSON schema: {str(error)[:500]}") from None

    def check_cost(self) -> None:
        """Raises: UsageError: checking an answer could take too long."""
        if not _is_bounded(self._schema):
            raise UsageError(
                f"{self._name} has parts that cannot be enforced while an answer is written, and too many references "
                "and alternatives to check them afterwards; simplify it."
            )

    def problem(self, answer: str) -> str | None:
        """What is wrong with an answer, and where in it; None if it is JSON of the schema with no name twice."""
        try:
            value = json.loads(answer, object_pairs_hook=_object_with_unique_names)
        except (ValueError, RecursionError) as error:
            return f"The answer is not valid JSON: {error}"
        try:
            if self._validator.is_valid(value):
                return None
            wrong = next(self._validator.iter_errors(value))
        except (ValueError, RecursionError) as error:
            return f"The answer cannot be checked: {str(error)[:200]}"
        return f"{wrong.message[:500]} (at /{'/'.join(map(str, wrong.instance_path))})"


class _Translation:
    """A document in the words of draft 2020-12, with all that it refers to in $defs."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._numbers: dict[int, int] = {}
        self._todo: list[Any] = []
        self.schema = self._translated(document.root)
        definitions = {}
        while self._todo:
            part = self._todo.pop()
            definitions[str(self._numbers[id(part)])] = self._translated(part)
        self.schema["$defs"] = definitions

    def _translated(self, schema: Any) -> Any:
        if isinstance(schema, bool):
            return schema
        found: dict[str, Any] = {}
        for key, value in schema.items():
            if key in REFERENCES:
                found.setdefault("allOf", []).append({"$ref": self._reference(schema, value)})
            elif key == "items" and isinstance(value, list):
                found["prefixItems"] = [self._translated(part) for part in value]
            elif key == "additionalItems":
                if isinstance(schema.get("items"), list):
                    found["items"] = self._translated(value)
            elif key == "dependencies":
                for name, part in value.items():
                    kind = "dependentRequired" if isinstance(part, list) else "dependentSchemas"
                    found.setdefault(kind, {})[name] = part if isinstance(part, list) else self._translated(part)
            elif key in ("exclusiveMinimum", "exclusiveMaximum") and isinstance(value, bool):
                bound = key.removeprefix("exclusive").lower()
                if value and bound in schema:
                    found[key] = schema[bound]
            elif key == "allOf":
                found.setdefault("allOf", []).extend(self._translated(part) for part in value)
            elif key in LISTS and isinstance(value, list):
                found[key] = [self._translated(part) for part in value]
            elif key in ONE:
                found[key] = self._translated(value)
            elif key in NAMED - {"$defs", "definitions"}:
                found.setdefault(key, {}).update({name: self._translated(part) for name, part in value.items()})
            elif key in CONSTRAINING | {"minContains", "maxContains"} and key != "format":
                found[key] = value
        return found

    def _reference(self, schema: dict[str, Any], name: str) -> str:
        target = self._document.target(schema, name)
        if id(target) not in self._numbers:
            self._numbers[id(target)] = len(self._numbers)
            self._todo.append(target)
        return f"#/$defs/{self._numbers[id(target)]}"


def _is_bounded(root: dict[str, Any]) -> bool:
    """Whether every value is compared with few schemas: alternatives may multiply through references."""
    steps = 0
    circles: set[tuple[str, tuple[str, ...]]] = set()
    work: list[tuple[Any, tuple[str, ...], dict[str, int]]] = [(root, (), {})]
    while work:
        schema, path, entered = work.pop()
        steps += 1
        if steps > _MOST_STEPS:
            return False
        if isinstance(schema, bool):
            continue
        reference = schema.get("$ref")
        if reference is not None:
            if reference in entered:  # a circle: it must not come to the same value in two ways
                circle = (reference, path[entered[reference] :])
                if circle in circles:
                    return False
                circles.add(circle)
            else:
                target = root["$defs"][reference.removeprefix("#/$defs/")]
                work.append((target, path, {**entered, reference: len(path)}))
        work += ((part, (*path, *steps_in), entered) for steps_in, part in _parts(schema))
    return True


def _parts(schema: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The schemas within a schema, each with the steps to the values that it is compared with."""
    for key, value in schema.items():
        if key in ("properties", "patternProperties"):
            for name, part in value.items():
                yield (name if key == "properties" else "*",), part
        elif key == "dependentSchemas":
            yield from (((), part) for part in value.values())
        elif key in LISTS and isinstance(value, list):
            yield from ((("[]",) if key == "prefixItems" else (), part) for part in value)
        elif key in ONE:
            inner = {"not": (), "if": (), "then": (), "else": (), "propertyNames": ("name",)}
            yield inner.get(key, ("*",) if key.endswith("Properties") else ("[]",)), value


def _object_with_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice.")
    return found
