"""Compiling a JSON schema to a grammar, and checking answers for what the grammar does not enforce."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from ...errors import UsageError
from .checker import Checker
from .document import Document, is_unicode, text_of
from .grammar import Grammar
from .normalize import Normalizer
from .scalars import compact_text
from .shortest import Shortest
from .unique_items import Path, unique_paths


@dataclass(frozen=True)
class CompiledSchema:
    """A JSON schema and the grammar of its values.

    Attributes:
        text: the schema as JSON text.
        grammar: the grammar in llguidance's Lark dialect.
        unenforced: the keywords that the grammar does not enforce, with their places, such as "'not' at /properties/a".
            If there are any, an answer may violate the schema, so that `problem` has to check it.
        has_open_names: whether the grammar admits objects with the same name twice, which the reader of the grammar
            must exclude.
        unique_paths: the paths to arrays in which the reader of the grammar must exclude that an item comes twice.
        examples: short texts of strings that have a pattern.
        shortest: a short text of the grammar; None if none was found. In rare cases the grammar does not admit
            it.
    """

    text: str
    grammar: str
    unenforced: tuple[str, ...] = ()
    has_open_names: bool = False
    unique_paths: tuple[Path, ...] = ()
    examples: tuple[str, ...] = ()
    shortest: str | None = None

    @property
    def lark(self) -> str:
        """An expression for the values in a larger grammar."""
        return f"%lark {{\n{self.grammar}\n}}"

    def problem(self, answer: str) -> str | None:
        """What is wrong with an answer, and where in it; None if it is JSON of the schema with no name twice."""
        return self._checker.problem(answer)

    @cached_property
    def _checker(self) -> Checker:
        return Checker(Document(self.text, "The schema", strict=False))


def compile_schema(value: object, name: str = "json_schema", strict: bool = False) -> CompiledSchema:
    """Compile a schema (draft 2020-12), given as a mapping or JSON text. Errors call it `name`.

    strict: refuse what the grammar cannot enforce, instead of listing it in `unenforced`.

    Raises:
        UsageError: it is not a JSON schema, too large, too deep or too complex, or, if strict, has a keyword that
            cannot be enforced.
    """
    return _compiled(text_of(value, name), name, strict)


@lru_cache(maxsize=64)
def _compiled(text: str, name: str, strict: bool) -> CompiledSchema:
    document = Document(text, name, strict)
    normal = Normalizer(document, strict)
    grammar = Grammar(normal)
    try:
        state = normal.state(document.root)
        if normal.is_empty(state):
            raise UsageError(
                f"{name} admits no value, or none that can be described; see if its keywords exclude each other."
            )
        rules = grammar.text(state)
        paths = unique_paths(normal, state, grammar.unique)
    except RecursionError:
        raise UsageError(f"{name} is too complex: its references and alternatives are nested too deep.") from None
    if not is_unicode(rules):
        raise UsageError(f"{name} must be valid Unicode; it has an unpaired surrogate.")
    unenforced = tuple(normal.unenforced)
    examples = tuple(grammar.examples)
    short = Shortest(normal).value(state)
    shortest = None if short is None else compact_text(short[0])
    compiled = CompiledSchema(text, rules, unenforced, grammar.has_open_names, paths, examples, shortest)
    if unenforced:
        Checker(document).check_cost()
    return compiled


def lark(schema: Mapping[str, Any]) -> str:
    """An expression of llguidance's Lark dialect for JSON of a schema."""
    return compile_schema(schema).lark
