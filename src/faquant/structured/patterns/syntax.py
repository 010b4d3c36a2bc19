"""The syntax tree of a regular expression of ECMA-262, as JSON schemas use it (without and with the flag u)."""

import re
from dataclasses import dataclass
from typing import TypeAlias

from .scanner import Scanner

LAST = 0x10FFFF
_LONGEST = 16_384
_DEEPEST = 64


class PatternError(ValueError):
    """A pattern is not a regular expression, or uses what is not supported; the message names it."""


@dataclass(frozen=True)
class Chars:
    """One character: of these ranges of code points or Unicode categories ("Lu"), or, if negated, any other."""

    ranges: tuple[tuple[int, int], ...]
    categories: tuple[str, ...] = ()
    negated: bool = False


@dataclass(frozen=True)
class Sequence:
    parts: "tuple[Node, ...]"


@dataclass(frozen=True)
class Choice:
    options: "tuple[Node, ...]"


@dataclass(frozen=True)
class Repeat:
    """`part`, at least `least` and at most `most` times (None: any number)."""

    part: "Node"
    least: int
    most: int | None


@dataclass(frozen=True)
class Edge:
    """The beginning of the text, or its end."""

    is_end: bool


@dataclass(frozen=True)
class Ahead:
    """What follows must begin with `part`, or must not."""

    part: "Node"
    negated: bool


Node: TypeAlias = Chars | Sequence | Choice | Repeat | Edge | Ahead

EMPTY = Sequence(())
ANYTHING = Chars((), negated=True)
_DIGITS = ((48, 57),)
_WORD = ((48, 57), (65, 90), (95, 95), (97, 122))
# fmt: off
_SPACE = ((9, 13), (32, 32), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
          (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF))
# fmt: on
_DOT = Chars(((10, 10), (13, 13), (0x2028, 0x2029)), negated=True)
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_CATEGORY = re.compile("L[ultmo]?|M[nce]?|N[dlo]?|P[cdseifo]?|S[mcko]?|Z[slp]?|C[cfo]?")
_LONG_NAMES = {"Letter": "L", "Lowercase_Letter": "Ll", "Uppercase_Letter": "Lu", "Number": "N", "Punctuation": "P"}


def parse(pattern: str) -> Node:
    """The tree of a pattern. Raises: PatternError."""
    if len(pattern) > _LONGEST:
        raise PatternError(f"it is longer than {_LONGEST} characters")
    parser = _Parser(pattern)
    tree = parser.choice()
    if parser.place < len(pattern):
        raise PatternError("it has an unmatched )")
    return tree


def ranges_without(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """All code points that are not in the ranges."""
    found, begin = [], 0
    for first, last in sorted(ranges):
        if first > begin:
            found.append((begin, first - 1))
        begin = max(begin, last + 1)
    return (*found, (begin, LAST)) if begin <= LAST else tuple(found)


class _Parser(Scanner):
    def __init__(self, pattern: str) -> None:
        super().__init__(pattern)
        self.ignores_case, self.depth = False, 0

    def choice(self) -> Node:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise PatternError(f"it is nested more than {_DEEPEST} levels deep")
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        self.depth -= 1
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self.place < len(self.pattern) and self.pattern[self.place] not in "|)":
            part = self._repeated(self._atom())
            parts += part.parts if isinstance(part, Sequence) else [part]
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _atom(self) -> Node:
        mark = self._next()
        if mark == "(":
            return self._group()
        if mark == "[":
            return self._class()
        if mark == "\\":
            return self._escape()
        if mark in "*+?":
            raise PatternError(f"{mark} repeats nothing")
        if mark in "^$":
            return Edge(mark == "$")
        return _DOT if mark == "." else self._chars(((ord(mark), ord(mark)),))

    def _group(self) -> Node:
        ahead = self._match(r"\?[=!]")
        if ahead is None and self._match(r"\?(?:P?<[A-Za-z_]\w*>|:)") is None and self._take("?"):
            flags = self._match(r"i(\)|:)")
            if flags is None or (flags[1] == ")" and flags.start() > 2):
                raise PatternError(f"(?{self.pattern[self.place : self.place + 2]} is not supported")
            if flags[1] == ")":
                self.ignores_case = True
                return EMPTY
            before, self.ignores_case = self.ignores_case, True
            tree = self._closed(self.choice())
            self.ignores_case = before
            return tree
        tree = self._closed(self.choice())
        return tree if ahead is None else Ahead(tree, ahead[0] == "?!")

    def _closed(self, tree: Node) -> Node:
        if not self._take(")"):
            raise PatternError("it has an unmatched (")
        return tree

    def _repeated(self, part: Node) -> Node:
        found = self._match(r"(?:([*+?])|\{([0-9]{1,6})(,([0-9]{0,6}))?\})\??")
        if found is None:
            return part
        if self.place < len(self.pattern) and self.pattern[self.place] in "*+?":
            raise PatternError(f"{found[0]}{self.pattern[self.place]} is not supported")
        if found[1]:
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[found[1]]
        else:
            least = int(found[2])
            most = (int(found[4]) if found[4] else None) if found[3] else least
        if most is not None and most < least:
            raise PatternError(f"{found[0]} has its bounds in the wrong order")
        return Repeat(part, least, most)

    def _escape(self) -> Node:
        mark = self._next()
        chars = self._class_escape(mark)
        if chars is not None:
            return chars
        if mark in "bBAZzk123456789":
            raise PatternError(f"\\{mark} is not supported")
        point = self._point(mark)
        return self._chars(((point, point),))

    def _class_escape(self, mark: str) -> Chars | None:
        if mark.lower() in _CLASSES:
            return Chars(_CLASSES[mark.lower()], negated=mark.isupper())
        return Chars((), (self._category(),), mark == "P") if mark in "pP" else None

    def _category(self) -> str:
        found = self._match(r"\{(?:gc=|General_Category=)?(\w+)\}")
        name = _LONG_NAMES.get(found[1], found[1]) if found else ""
        if _CATEGORY.fullmatch(name) is None:
            raise PatternError(f"\\p{found[0] if found else ''} is not supported")
        return name

    def _point(self, mark: str) -> int:
        """The code point of the escape that begins with `mark`."""
        if mark in _CONTROLS and not (mark == "0" and self._match("[0-9]")):
            return _CONTROLS[mark]
        if mark == "c" and (letter := self._match("[A-Za-z]")):
            return ord(letter[0]) % 32
        pair = mark == "u" and self._match(r"([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
        if pair:
            return 0x10000 + ((int(pair[1], 16) - 0xD800) << 10) + int(pair[2], 16) - 0xDC00
        found = None
        if mark in "xu":
            found = self._match("[0-9a-fA-F]{2}" if mark == "x" else r"[0-9a-fA-F]{4}|\{[0-9a-fA-F]{1,6}\}")
        if found is not None:
            point = int(found[0].strip("{}"), 16)
            if 0xD800 <= point < 0xE000 or point > LAST:
                raise PatternError(f"\\u{found[0]} is not a character")
            return point
        return ord(mark)

    def _class(self) -> Chars:
        negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        categories: list[str] = []
        while not self._take("]"):
            first = self._member()
            if isinstance(first, Chars):
                ranges += ranges_without(first.ranges) if first.negated and first.ranges else first.ranges
                if first.categories:
                    if first.negated:
                        raise PatternError("\\P in a class is not supported")
                    categories += first.categories
                continue
            last: int | Chars = first
            if re.compile(r"-[^\]]").match(self.pattern, self.place):
                self.place += 1
                last = self._member()
            if isinstance(last, Chars) or last < first:
                raise PatternError("it has a class with a range in the wrong order")
            ranges.append((first, last))
        found = self._chars(tuple(ranges))
        return Chars(found.ranges, tuple(categories), negated)

    def _member(self) -> int | Chars:
        mark = self._next()
        if mark != "\\":
            return ord(mark)
        mark = self._next()
        chars = self._class_escape(mark)
        return chars if chars is not None else 8 if mark == "b" else self._point(mark)

    def _chars(self, ranges: tuple[tuple[int, int], ...]) -> Chars:
        if not self.ignores_case:
            return Chars(ranges)
        more = []
        for first, last in ranges:
            for low, high, shift in ((65, 90, 32), (97, 122, -32)):
                if max(first, low) <= min(last, high):
                    more.append((max(first, low) + shift, min(last, high) + shift))
        return Chars((*ranges, *more))

    def _next(self) -> str:
        if self.place >= len(self.pattern):
            raise PatternError("it ends too early")
        self.place += 1
        return self.pattern[self.place - 1]
