"""A short text that a regular expression probably matches. The caller must verify it."""

import re

from .patterns.scanner import Scanner

_CLASSES = {"d": "0", "D": "a", "w": "a", "W": "-", "s": " ", "S": "a", "p": "a", "P": "0", "h": "0"}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_NOTHING = "bBAzZG"
_ANY = 'a0A-_ .é!#~"'


def example(pattern: str) -> str | None:
    """A text that matches all of `pattern`, with as few repetitions as possible; None if none is found.

    Look-around, back-references and set operations in classes are not supported. The text may be wrong if case or
    Unicode categories matter.
    """
    parser = _RegexParser(pattern)
    try:
        text = parser.alternatives()
        text.encode()
    except (IndexError, ValueError, OverflowError, RecursionError, StopIteration, re.error):
        return None
    return text if parser.place == len(pattern) else None


class _RegexParser(Scanner):
    def alternatives(self) -> str:
        found = [self._sequence()]
        while self._take("|"):
            found.append(self._sequence())
        return min(found, key=len)

    def _sequence(self) -> str:
        parts = []
        while self.place < len(self.pattern) and self.pattern[self.place] not in "|)":
            parts.append(self._repeated(self._atom()))
        return "".join(parts)

    def _atom(self) -> str:
        mark = self._next()
        if mark == "(":
            self._match(r"\?(P?<\w+>|[a-z-]*:)?")
            text = self.alternatives()
            if not self._take(")"):
                raise ValueError
            return text
        if mark == "[":
            return self._class()
        if mark == "\\":
            return self._escape()
        return {"^": "", "$": "", ".": "a"}.get(mark, mark)

    def _repeated(self, text: str) -> str:
        found = self._match(r"([*+?]|\{(\d+)(,\d*)?\})[?+]?")
        if found is None:
            return text
        count = 1 if found[1] == "+" else int(found[2] or 0)
        if count * len(text) > 1000:
            raise ValueError
        return text * count

    def _escape(self) -> str:
        found = self._match(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|[xu]\{([0-9A-Fa-f]+)\}")
        if found is not None:
            return chr(int(found[found.lastindex or 0], 16))
        mark = self._next()
        if mark in "pP":
            self._match(r"\{[^}]*\}|\w")
        return _CLASSES.get(mark) or _CONTROLS.get(mark) or ("" if mark in _NOTHING else mark)

    def _class(self) -> str:
        negated = self._take("^")
        first, start = "", self.place
        while not self._take("]") or self.place == start + 1:
            if self.pattern.startswith(("[", "&&", "--", "~~"), self.place):
                raise ValueError
            item = self._escape() if self._take("\\") else self._next()
            first = first or item
        if not negated:
            return first
        # Python has the same syntax for classes.
        others = re.compile("[^" + self.pattern[start : self.place])
        return next(mark for mark in _ANY if others.match(mark))

    def _next(self) -> str:
        self.place += 1
        return self.pattern[self.place - 1]
