"""Compiled patterns."""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from .matching import example, occurs
from .syntax import Node, parse
from .text import IN_JSON, PLAIN, Text


@dataclass(frozen=True)
class Pattern:
    """A regular expression of ECMA-262 that occurs anywhere in a string.

    Attributes:
        text: the JSON text of the strings in which it occurs, without quotes; None if there are none.
    """

    source: str
    node: Node = field(compare=False, repr=False)
    text: Text | None = field(compare=False, repr=False)

    @cached_property
    def plain_text(self) -> Text | None:
        """The strings in which it occurs, as they are; None if there are none."""
        return PLAIN.text_of(self.node)

    def occurs(self, text: str) -> bool:
        """Whether it occurs in a text."""
        return occurs(self.node, text)

    def example(self) -> str | None:
        """A short text in which it occurs; None if none is found."""
        return example(self.node)


@lru_cache(maxsize=512)
def compile_pattern(source: str) -> Pattern:
    """Compile a pattern. Raises: PatternError: it is invalid, or uses what is not supported."""
    node = parse(source)
    return Pattern(source, node, IN_JSON.text_of(node))
