"""The names in the objects of a JSON text, read piece by piece, to refuse a name that occurs twice in an object."""

import re
from dataclasses import dataclass, replace

_MARKS = re.compile(rb'["\\{}\[\],:]')
_STRING_MARKS = re.compile(rb'["\\]')


@dataclass(frozen=True, slots=True)
class Names:
    """What of a text matters to names. The text may be within other text, such as that around a call.

    Attributes:
        seen: the names of the innermost object; None within an array or outside of objects.
        outer: the state around the innermost object or array.
        name: the beginning of the name that the text ends in; None if it does not end in a name.
        in_string: whether the text ends in a string.
        escaped: whether it ends in the middle of an escape.
        expects_name: whether a string that begins now is a name.
    """

    seen: frozenset[bytes] | None = None
    outer: "Names | None" = None
    name: bytes | None = None
    in_string: bool = False
    escaped: bool = False
    expects_name: bool = False

    def after(self, text: bytes) -> "Names | None":
        """The state after more text; None if it repeats a name. Names must have one spelling each."""
        if self.in_string and self.name is None and not self.escaped and _STRING_MARKS.search(text) is None:
            return self
        state, place = self, 0
        while place < len(text):
            if state.in_string:
                found = state._string_end(text, place)
                if found is None:
                    return None
                state, place = found
                continue
            mark = _MARKS.search(text, place)
            if mark is None:
                break
            state = state._after_mark(mark[0])
            place = mark.end()
        return state

    def _string_end(self, text: bytes, place: int) -> "tuple[Names, int] | None":
        """The state after the string, or as much of it as there is, and where that ends; None if it repeats a name."""
        end, escaped = place, self.escaped
        if escaped:
            end, escaped = place + 1, False
        while (mark := _STRING_MARKS.search(text, end)) is not None and mark[0] == b"\\":
            end = mark.end() + 1
        if mark is None:
            name = None if self.name is None else self.name + text[place:]
            return replace(self, name=name, escaped=end > len(text)), len(text)
        if self.name is None:
            return replace(self, in_string=False, escaped=False), mark.end()
        name = self.name + text[place : mark.start()]
        if self.seen is None or name in self.seen:
            return None
        return Names(self.seen | {name}, self.outer), mark.end()

    def _after_mark(self, mark: bytes) -> "Names":
        if mark == b'"':
            return replace(self, in_string=True, name=b"" if self.expects_name else None)
        if mark == b"{":
            return Names(frozenset(), self, expects_name=True)
        if mark == b"[":
            return Names(None, self)
        if mark in b"]}":
            return self.outer or self
        return replace(self, expects_name=mark == b"," and self.seen is not None)
