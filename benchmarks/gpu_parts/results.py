"""What sections find: rows of tables and notes, appended to a file at once, so that a dying process loses nothing."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_UP = "FAQUANT_GPU_WARM_UP"
"""This environment variable tells a process to compile kernels only."""


class Results:
    """Writes rows and notes, and knows how much time is left.

    Args:
        file: receives a JSON object per line.
        deadline: as time.time; a section begins nothing new after it.

    Attributes:
        after_row: is called after each row.
    """

    def __init__(self, file: Path, deadline: float) -> None:
        self._file, self._deadline = file, deadline
        self._before = read(file)["tables"]
        self.after_row: Callable[[], None] = lambda: None

    def has(self, table: str, **values: Any) -> bool:
        """Whether an earlier process wrote a row with these values."""
        return any(values.items() <= row.items() for row in self._before.get(table, []))

    @property
    def is_late(self) -> bool:
        return time.time() > self._deadline

    def row(self, table: str, **values: Any) -> None:
        """Add a row to one of TABLES."""
        self._write({"table": table, "row": values})
        print(f"{table}: " + ", ".join(f"{name} {_shown(value)}" for name, value in values.items()), flush=True)
        self.after_row()

    def note(self, text: str) -> None:
        """Add a sentence to the report."""
        self._write({"note": text})
        print(f"Note: {text}", flush=True)

    def fact(self, **values: Any) -> None:
        """Add facts about the machine."""
        self._write({"facts": values})
        print(", ".join(f"{name} {value}" for name, value in values.items()), flush=True)

    def _write(self, record: dict[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read(file: Path) -> dict[str, Any]:
    """All results so far: `facts`, `notes`, and `tables` with the rows of each."""
    found: dict[str, Any] = {"facts": {}, "notes": [], "tables": {}}
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # a process died while it wrote
        if "table" in record:
            found["tables"].setdefault(record["table"], []).append(record["row"])
        found["notes"] += [record["note"]] if "note" in record else []
        found["facts"] |= record.get("facts", {})
    return found


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
