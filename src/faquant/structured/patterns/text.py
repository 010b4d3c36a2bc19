"""Patterns as expressions of llguidance's Lark dialect for the strings in which they occur."""

from collections.abc import Callable
from dataclasses import dataclass

from .characters import in_json, plain
from .matching import is_nullable
from .syntax import ANYTHING, Ahead, Chars, Choice, Edge, Node, PatternError, Repeat, Sequence

_MOST_COPIES = 4


@dataclass(frozen=True)
class Text:
    """The text of some strings.

    Attributes:
        source: a regular expression of Rust's crate, or, if `is_lark`, an expression of terminals.
        is_nullable: whether the empty text is one of them.
        name: the terminal of DEFINITION that it is, if it is one.
    """

    source: str
    is_nullable: bool
    is_lark: bool = False
    name: str = ""

    @property
    def lark(self) -> str:
        """The expression; it can be an operand of & and ~."""
        if self.name:
            return self.name
        return f"({self.source})" if self.is_lark else f"/{self.source}/" if self.source else '""'


class Spelling:
    """How the characters of strings are written: a regular expression of Rust's crate for a class of them.

    Attributes:
        any: all strings.
    """

    def __init__(self, characters: Callable[[Chars], str], name: str = "") -> None:
        self._characters = characters
        self.any = Text(f"(?:{characters(ANYTHING)})*", True, name=name)

    def text_of(self, node: Node) -> Text | None:
        """The strings in which the pattern occurs; None if there are none.

        Raises:
            PatternError: an anchor or a look-ahead is repeated without bounds or too often.
        """
        anywhere = self.follow(node, self.any, False)
        found = None if anywhere is None else _concatenated(self.any, anywhere)
        if not _has_beginning(node):
            return found
        return _either([self.follow(node, self.any, True), found])

    def follow(self, node: Node, rest: Text, at_start: bool) -> Text | None:
        """The texts that begin with a match and go on with `rest`, which reaches to the end of the string."""
        if not _has_assertion(node):
            return _concatenated(Text(self.regex(node), is_nullable(node)), rest)
        if isinstance(node, Sequence):
            return self._follow_all(node.parts, rest, at_start)
        if isinstance(node, Choice):
            return _either([self.follow(option, rest, at_start) for option in node.options])
        if isinstance(node, Edge):
            if node.is_end:
                return Text("", True) if rest.is_nullable else None
            return rest if at_start else None
        if isinstance(node, Ahead):
            begun = self.follow(node.part, self.any, at_start)
            if begun is None:
                return rest if node.negated else None
            fits = rest.is_nullable and begun.is_nullable != node.negated
            return Text(f"{rest.lark} & {'~' if node.negated else ''}{begun.lark}", fits, True)
        if isinstance(node, Repeat):
            return self._follow_repeated(node, rest, at_start)
        raise PatternError("it has a part that is not supported")

    def _follow_all(self, parts: tuple[Node, ...], rest: Text, at_start: bool) -> Text | None:
        if not parts:
            return rest
        count = next((place for place, part in enumerate(parts) if _has_assertion(part)), len(parts))
        head, tail = (Sequence(parts[:count]), parts[count:]) if count else (parts[0], parts[1:])
        is_empty = isinstance(head, Edge | Ahead)
        after = self._follow_all(tail, rest, at_start and is_empty)
        found = None if after is None else self.follow(head, after, at_start)
        if at_start and not is_empty and is_nullable(head) and any(map(_has_beginning, tail)):
            # If nothing matches the head, the tail is still at the beginning.
            return _either([found, self._follow_all(tail, rest, True)])
        return found

    def _follow_repeated(self, node: Repeat, rest: Text, at_start: bool) -> Text | None:
        most = 1 if node.most is None else node.most
        is_endless = node.most is None and (node.least > 0 or not _only_edges(node.part))
        if most > _MOST_COPIES or is_endless:
            raise PatternError("it repeats an anchor or a look-ahead")
        found, texts = rest, [rest] if not node.least else []
        for count in range(1, most + 1):
            after = self.follow(node.part, found, at_start and count == most)
            if after is None:
                break
            found = after
            texts += [found] if count >= node.least else []
        return _either(list(texts))

    def regex(self, node: Node) -> str:
        """A regular expression of Rust's crate for a node without assertions."""
        if isinstance(node, Chars):
            return self._characters(node)
        if isinstance(node, Sequence):
            return "".join(map(self.regex, node.parts))
        if isinstance(node, Choice):
            return f"(?:{'|'.join(map(self.regex, node.options))})"
        if isinstance(node, Repeat):
            if node.most == 0:
                return ""
            bounds = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((node.least, node.most))
            if bounds is None:
                bounds = f"{{{node.least},{'' if node.most is None else node.most}}}"
            return f"(?:{self.regex(node.part)}){bounds}"
        raise PatternError("it has a part that is not supported")


def both(one: Text, other: Text) -> Text:
    """The texts that are in both."""
    return Text(f"{one.lark} & {other.lark}", one.is_nullable and other.is_nullable, True)


def without(one: Text, other: Text) -> Text:
    """The texts of `one` that are not in `other`."""
    return Text(f"{one.lark} & ~{other.lark}", one.is_nullable and not other.is_nullable, True)


def _only_edges(node: Node) -> bool:
    return isinstance(node, Edge | Ahead) or (isinstance(node, Sequence) and all(map(_only_edges, node.parts)))


def _has_assertion(node: Node) -> bool:
    if isinstance(node, Sequence):
        return any(map(_has_assertion, node.parts))
    if isinstance(node, Choice):
        return any(map(_has_assertion, node.options))
    return _has_assertion(node.part) if isinstance(node, Repeat) else isinstance(node, Edge | Ahead)


def _has_beginning(node: Node) -> bool:
    if isinstance(node, Sequence):
        return any(map(_has_beginning, node.parts))
    if isinstance(node, Choice):
        return any(map(_has_beginning, node.options))
    if isinstance(node, Repeat | Ahead):
        return _has_beginning(node.part)
    return isinstance(node, Edge) and not node.is_end


def _concatenated(one: Text, other: Text) -> Text:
    nullable = one.is_nullable and other.is_nullable
    if not one.is_lark and not other.is_lark:
        return Text(one.source + other.source, nullable)
    return Text(" ".join(part.lark for part in (one, other) if part.source), nullable, True)


def _either(texts: list[Text | None]) -> Text | None:
    found = list(dict.fromkeys(text for text in texts if text is not None))
    if len(found) < 2:
        return found[0] if found else None
    nullable = any(text.is_nullable for text in found)
    if any(text.is_lark for text in found):
        return Text(" | ".join(text.lark for text in found), nullable, True)
    return Text(f"(?:{'|'.join(text.source for text in found)})", nullable)


IN_JSON = Spelling(in_json, "CHARS")
"""As JSON strings have them, without the quotes."""
PLAIN = Spelling(plain)
DEFINITION = f"CHARS: /{IN_JSON.any.source}/"
"""A grammar that uses texts in JSON must have this line."""
