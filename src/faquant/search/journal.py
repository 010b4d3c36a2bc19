"""The measurements of a search in a file, with which an interrupted search resumes."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoint.files import read_object
from ..checkpoint.shards import write_json
from ..errors import CheckpointError, OutputError
from ..recipe import AttentionRecipe, LinearRecipe, Recipe
from .costs import Timing
from .space import Measured

Part = AttentionRecipe | LinearRecipe | Recipe


class Journal:
    """Rows of the table by what was measured, in a file that is replaced atomically; path None: not saved.

    `identity` is what the rows depend on; a file with another one is replaced."""

    def __init__(self, path: Path | None, identity: Sequence[str]) -> None:
        self._path, self._identity = path, list(identity)
        self._rows: dict[str, list[dict[str, Any]]] = {}
        if path is not None and path.is_file():
            try:
                kept = read_object(path.parent, path.name)
            except CheckpointError:
                return
            if kept.get("identity") == self._identity:
                self._rows = kept["rows"]

    def measured(self, what: str, recipes: Mapping[str, Part], measure: Callable[[], list[Measured]]) -> list[Measured]:
        """The rows of these recipes: saved ones, or else the results of `measure`."""
        described = json.dumps([what, {name: recipe.model_dump() for name, recipe in recipes.items()}])
        key = hashlib.sha256(described.encode()).hexdigest()
        return [Measured(**row) for row in self._kept(key, measure)]

    def timings(self, what: Sequence[object], measure: Callable[[], list[Timing]]) -> list[Timing]:
        """The timings described by `what`: saved ones, or else the results of `measure`. So a search that resumes
        chooses as before."""
        return [Timing(**row) for row in self._kept(f"timings {json.dumps(what)}", measure)]

    def _kept(self, key: str, measure: Callable[[], Sequence[Measured | Timing]]) -> list[dict[str, Any]]:
        if key not in self._rows:
            self._rows[key] = [asdict(row) for row in measure()]
            self._write()
        return self._rows[key]

    def _write(self) -> None:
        if self._path is None:
            return
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            write_json(partial, {"identity": self._identity, "rows": self._rows})
            partial.replace(self._path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OutputError(
                f"{self._path} cannot be written: {error}. Free some space, or choose another place."
            ) from None
