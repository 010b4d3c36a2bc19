"""Parameters of tools for formats that write each parameter on its own."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import UsageError
from ..json_schema.keywords import CONSTRAINING

DEFINITIONS = ("$defs", "definitions")
_WRITABLE = {"type", "properties", "required", "additionalProperties"}


def check_properties(
    format: str, tool: str, schema: Mapping[str, Any], name_pattern: re.Pattern[str], names: str
) -> None:
    """Check that a schema consists of plain properties whose names match a pattern.

    names: what names must be, for the message.

    Raises:
        UsageError: it does not.
    """
    properties = schema.get("properties", {})
    unknown = [key for key in schema if key in CONSTRAINING and key not in _WRITABLE]
    unknown += [name for name in (tool, *properties) if not name_pattern.fullmatch(name)]
    unknown += [name for name in schema.get("required", ()) if name not in properties]
    if unknown:
        raise UsageError(
            f"The tool {tool} cannot be called in the format {format} because of {str(unknown[0])[:80]!r}: names must "
            f"be {names}, and parameters plain properties."
        )


def check_references(format: str, tool: str, schema: Mapping[str, Any]) -> None:
    """Raises: UsageError: a reference in the schema is to something else than definitions."""
    other = [ref for ref in _references(schema) if not ref.startswith(("#/$defs/", "#/definitions/"))]
    if other:
        raise UsageError(
            f"The tool {tool} cannot be called in the format {format} because of {other[0][:80]!r}: references must "
            "be to $defs or definitions."
        )


def with_definitions(part: object, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of one property with the definitions of the whole schema."""
    shared = {key: schema[key] for key in DEFINITIONS if key in schema}
    return {**part, **shared} if isinstance(part, dict) else shared if part else {"enum": []}


def _references(value: object) -> Iterator[str]:
    """Yield each `$ref`, except for properties with this name."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)
