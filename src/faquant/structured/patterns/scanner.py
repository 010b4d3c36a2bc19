"""Reads a text piece by piece."""

import re


class Scanner:
    """A pattern, and the place up to which it has been read."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.place = pattern, 0

    def _match(self, expected: str) -> re.Match[str] | None:
        found = re.compile(expected).match(self.pattern, self.place)
        if found is not None:
            self.place = found.end()
        return found

    def _take(self, mark: str) -> bool:
        taken = self.pattern.startswith(mark, self.place)
        self.place += len(mark) if taken else 0
        return taken
