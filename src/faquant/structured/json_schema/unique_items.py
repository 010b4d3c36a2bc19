"""The paths to arrays whose items must be unique, for the reader of the grammar, which cannot describe that."""

import json
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from .forms import State
from .interfaces import Normal
from .objects import members

_MOST_PATHS = 64
_MOST_STEPS = 4096
Path: TypeAlias = tuple[bytes | None, ...]
"""The names that lead to a value, as they are written between quotes; None: any name or item."""


def unique_paths(normal: Normal, root: State, unique: Iterable[State]) -> tuple[Path, ...]:
    """The paths from the root to these states: names as they are written between quotes, None for any name or item."""
    wanted = frozenset(unique)
    if not wanted:
        return ()
    found: dict[Path, None] = {}
    work: list[tuple[State, Path, frozenset[State]]] = [(root, (), frozenset())]
    for _ in range(_MOST_STEPS):
        if not work or len(found) > _MOST_PATHS:
            break
        state, path, before = work.pop()
        if state in before:  # a path that goes on forever, which may lead to such an array
            work.append((state, path, before))
            break
        if state in wanted:
            found[path] = None
        work += [(inner, (*path, name), before | {state}) for name, inner in _inner(normal, state)]
    if not work and len(found) <= _MOST_PATHS:
        return tuple(found)
    normal.leave_out("'uniqueItems' in a schema that refers to itself, or has too many parts")
    return ()


def _inner(normal: Normal, state: State) -> Iterator[tuple[bytes | None, State]]:
    """The states of the parts of values."""
    if not state:
        return
    for form in normal.forms(state):
        if form.values is None and "array" in form.kinds:
            yield from ((None, item) for item in (*form.array.prefix, form.array.items) if item)
        if form.values is None and "object" in form.kinds:
            found = members(normal, form.object)
            for name, inner in found.declared.items():
                if inner:
                    yield json.dumps(name, ensure_ascii=False)[1:-1].encode(), inner
            yield from ((None, inner) for _, inner in found.others if inner)
