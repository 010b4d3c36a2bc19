"""What must not be repeated in a JSON text, read piece by piece: names in objects, and items of some arrays."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .json_schema import Path, Value

# What may distinguish a name or an item from those before it, and how far from the beginning of a text.
_LETTERS, _MOST_INSERTED = (b"a", b"1", b"b", b"2", b"c", b"3", b"_", b"0"), 2
_MARKS = re.compile(rb'["\\{}\[\],:]')
_STRING_MARKS = re.compile(rb'["\\]')


@dataclass(frozen=True)
class UniqueArrays:
    """The arrays whose items must be unique.

    Attributes:
        paths: the paths of arrays.
        is_exact: whether these are paths from the beginning of the text; otherwise, from any value in it.
    """

    paths: tuple[Path, ...] = ()
    is_exact: bool = True

    def has(self, path: Path) -> bool:
        """Whether the array at this path is one of them."""
        return any(self._fits(each, path) for each in self.paths)

    def _fits(self, each: Path, path: Path) -> bool:
        if len(path) < len(each) or (self.is_exact and len(path) > len(each)):
            return False
        end = path[len(path) - len(each) :]
        return all(wanted is None or wanted == given for wanted, given in zip(each, end, strict=True))


NO_ARRAYS = UniqueArrays()


@dataclass(frozen=True, slots=True)
class Repetitions:
    """The state of a text, as far as it matters to repetitions.

    The text may be within other text, such as that around a call.

    Attributes:
        arrays: the arrays whose items must be unique.
        path: the path of the innermost object or array.
        names: the names of the innermost object; None if it is an array, or outside of objects.
        items: the items of the innermost array, if they must be unique; else None.
        outer: the state around the innermost object or array.
        name: the beginning of the name that the text ends in; None if it does not end in a name.
        last: the last complete name of the innermost object.
        in_string, escaped: whether the text ends in a string, and there in the middle of an escape.
        expects_name: whether a string that begins now is a name.
        text: the text, if there are such arrays.
        begin: where the item begins that the text ends in.
        is_unique: whether an array around the end of the text must have unique items.
    """

    arrays: UniqueArrays = NO_ARRAYS
    path: Path = ()
    names: frozenset[bytes] | None = None
    items: frozenset[Value] | None = None
    outer: "Repetitions | None" = None
    name: bytes | None = None
    last: bytes | None = None
    in_string: bool = False
    escaped: bool = False
    expects_name: bool = False
    text: bytes = b""
    begin: int = 0
    is_unique: bool = False

    @property
    def depends_on_rest(self) -> bool:
        """Whether what comes next may repeat something that has begun."""
        return self.name is not None or self.is_unique or (self.expects_name and bool(self.names))

    def after(self, text: bytes) -> "Repetitions | None":
        """The state after more text; None if it repeats something. Names must have one spelling each."""
        state, place, offset = self, 0, 0
        if self.arrays.paths:
            offset = len(self.text)
            state = replace(self, text=self.text + text)
        elif self.in_string and self.name is None and not self.escaped and _STRING_MARKS.search(text) is None:
            return self
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
            after = state._after_mark(mark[0], offset + mark.start())
            if after is None:
                return None
            state, place = after, mark.end()
        return state

    def without_repetition(self, text: bytes) -> Iterator[bytes]:
        """The text, or else texts with another letter near its beginning, that repeat nothing."""
        if self.after(text) is not None:
            yield text
            return
        for place in range(min(len(text), _MOST_INSERTED) + 1):
            for letter in _LETTERS:
                longer = text[:place] + letter + text[place:]
                if self.after(longer) is not None:
                    yield longer

    def _string_end(self, text: bytes, place: int) -> "tuple[Repetitions, int] | None":
        """The state after the string, or as much of it as there is, and where that ends; None if it repeats a name."""
        end = place + self.escaped
        while (mark := _STRING_MARKS.search(text, end)) is not None and mark[0] == b"\\":
            end = mark.end() + 1
        if mark is None:
            name = None if self.name is None else self.name + text[place:]
            return replace(self, name=name, escaped=end > len(text)), len(text)
        if self.name is None:
            return replace(self, in_string=False, escaped=False), mark.end()
        name = self.name + text[place : mark.start()]
        if self.names is None or name in self.names:
            return None
        ended = replace(self, names=self.names | {name}, name=None, last=name, in_string=False, escaped=False)
        return replace(ended, expects_name=False), mark.end()

    def _after_mark(self, mark: bytes, place: int) -> "Repetitions | None":
        if mark == b'"':
            return replace(self, in_string=True, name=b"" if self.expects_name else None)
        if mark == b":":
            return self
        if mark in b"{[":
            return self._inner(mark, place)
        items = self.items
        if items is not None and self.text[self.begin : place].strip():
            item = _value(self.text[self.begin : place])
            if item in items:
                return None
            items |= {item}
        if mark == b",":
            return replace(self, items=items, begin=place + 1, expects_name=self.names is not None)
        return self if self.outer is None else replace(self.outer, text=self.text)

    def _inner(self, mark: bytes, place: int) -> "Repetitions":
        path: Path = ()
        if self.outer is not None:
            path = (*self.path, None if self.names is None else self.last)
        is_object = mark == b"{"
        is_unique = not is_object and self.arrays.has(path)
        return Repetitions(
            self.arrays,
            path,
            frozenset() if is_object else None,
            frozenset() if is_unique else None,
            self,
            expects_name=is_object,
            text=self.text,
            begin=place + 1,
            is_unique=is_unique or self.is_unique,
        )


def _value(text: bytes) -> Value:
    try:
        return Value(json.loads(text))
    except (ValueError, RecursionError):  # a part of a call in Python's syntax, or nested too deep
        return Value({"": text.decode("utf-8", "replace")})
