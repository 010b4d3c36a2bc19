"""Whether a pattern occurs in a text, and a short text in which it occurs. Takes polynomial time for every pattern."""

import unicodedata
from collections.abc import Collection

from .syntax import Ahead, Chars, Choice, Edge, Node, Repeat, Sequence, ranges_without

_PREFERRED = 'a0A-_ .é!#~"'


def occurs(node: Node, text: str) -> bool:
    """Whether a part of `text` matches."""
    return bool(_ends(node, text, range(len(text) + 1)))


def includes(chars: Chars, mark: str) -> bool:
    """Whether a class has this character."""
    point = ord(mark)
    found = any(first <= point <= last for first, last in chars.ranges)
    if not found and chars.categories:
        found = unicodedata.category(mark).startswith(chars.categories)
    return found != chars.negated


def is_nullable(node: Node) -> bool:
    """Whether the node can match the empty text, if what surrounds it allows that."""
    if isinstance(node, Sequence):
        return all(map(is_nullable, node.parts))
    if isinstance(node, Choice):
        return any(map(is_nullable, node.options))
    if isinstance(node, Repeat):
        return not node.least or is_nullable(node.part)
    return not isinstance(node, Chars)


def example(node: Node) -> str | None:
    """A short text in which the pattern occurs; None if none is found."""
    for follows in (False, True):
        text = _shortest(node, follows)
        if text is not None and len(text) < 1000 and occurs(node, text):
            return text
    return None


def _ends(node: Node, text: str, begins: Collection[int]) -> set[int]:
    """Where matches end that begin at one of these places."""
    if isinstance(node, Chars):
        return {place + 1 for place in begins if place < len(text) and includes(node, text[place])}
    if isinstance(node, Sequence):
        found = set(begins)
        for part in node.parts:
            found = _ends(part, text, found) if found else found
        return found
    if isinstance(node, Choice):
        return set().union(*(_ends(option, text, begins) for option in node.options))
    if isinstance(node, Edge):
        edge = len(text) if node.is_end else 0
        return {edge} if edge in begins else set()
    if isinstance(node, Ahead):
        return {place for place in begins if bool(_ends(node.part, text, (place,))) != node.negated}
    return _repeated_ends(node, text, begins)


def _repeated_ends(node: Repeat, text: str, begins: Collection[int]) -> set[int]:
    found = set(begins)
    for _ in range(node.least):
        after = _ends(node.part, text, found)
        if after == found:
            break
        found = after
    new, count = set(found), node.least
    while new and (node.most is None or count < node.most):
        new = _ends(node.part, text, new) - found
        found |= new
        count += 1
    return found


def _shortest(node: Node, follows: bool) -> str | None:
    """A text that may match. follows: with what look-aheads demand, as if nothing else came there."""
    if isinstance(node, Chars):
        return _one(node)
    if isinstance(node, Sequence):
        parts = [_shortest(part, follows) for part in node.parts]
        return None if None in parts else "".join(part for part in parts if part)
    if isinstance(node, Choice):
        texts = [_shortest(option, follows) for option in node.options]
        return min((text for text in texts if text is not None), key=len, default=None)
    if isinstance(node, Repeat):
        text = _shortest(node.part, follows) if node.least else ""
        return None if text is None or len(text) * node.least > 1000 else text * node.least
    if isinstance(node, Ahead) and follows and not node.negated:
        return _shortest(node.part, follows)
    return ""


def _one(chars: Chars) -> str | None:
    for mark in _PREFERRED:
        if includes(chars, mark):
            return mark
    ranges = ranges_without(chars.ranges) if chars.negated else chars.ranges
    points = [first for first, _ in ranges if not 0xD800 <= first < 0xE000]
    if points and not chars.categories:
        return chr(points[0])
    return next((mark for mark in map(chr, range(0x250)) if includes(chars, mark)), None)
