"""Detects where calls begin in an answer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_SPACE = " \t\r\n"


@dataclass(frozen=True)
class SplitText:
    """An incomplete text, split into parts.

    Attributes:
        text: certainly not part of a call.
        held: may become the beginning of a call.
        calls: the text after a tag, or a bare call with its beginning normalized to the grammar's spelling; None if no
            call has begun.
    """

    text: str
    held: str
    calls: str | None = None


class Opening:
    """Looks for tags anywhere in an answer, and for a bare call at its beginning.

    Args:
        tags: for each tag, the text that the grammar reads instead of it.
        bare: the beginnings of bare calls before the name: texts between which white space may be.
        names: for each tool, its name as a bare call writes it, such as `"weather"` or `weather(`, and what the grammar
            reads for the beginning up to it.
    """

    def __init__(
        self,
        tags: Mapping[str, str],
        bare: Iterable[Sequence[str]] = (),
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._tags = dict(tags)
        self._bare = tuple(bare)
        self._names = dict(names or {})

    def as_bytes(self) -> "Opening":
        """The same for texts with a character per byte of UTF-8."""

        def spelled(text: str) -> str:
            return text.encode().decode("latin-1")

        return Opening(
            {spelled(tag): spelled(text) for tag, text in self._tags.items()},
            [[spelled(part) for part in parts] for parts in self._bare],
            {spelled(name): spelled(text) for name, text in self._names.items()},
        )

    def split(self, text: str, at_start: bool) -> SplitText:
        """Split `text`, the held text followed by new text. at_start: whether it is at the beginning of the answer."""
        if at_start and self._names:
            found = [calls for parts in self._bare if (calls := self._bare_call(text, parts)) is not None]
            if any(found):
                return SplitText("", "", next(filter(None, found)))
            if found:
                return SplitText("", text)
        places = {tag: place for tag in self._tags if (place := text.find(tag)) >= 0}
        if places:
            tag = min(places, key=lambda tag: places[tag])
            return SplitText(text[: places[tag]], "", self._tags[tag] + text[places[tag] + len(tag) :])
        whole = text.rstrip("\ufffd")  # a cut-off answer may end within a character of a tag
        length = max((overlap(whole, tag) for tag in self._tags), default=0)
        length += len(text) - len(whole) if length else 0
        return SplitText(text[: len(text) - length], text[len(text) - length :])

    def _bare_call(self, text: str, parts: Sequence[str]) -> str | None:
        """The calls; "" if the text may become a call, None if it cannot."""
        for part in parts:
            text = text.lstrip(_SPACE)
            if not text.startswith(part):
                return "" if part.startswith(text) else None
            text = text[len(part) :]
        text = text.lstrip(_SPACE)
        for name, beginning in self._names.items():
            if text.startswith(name):
                return beginning + text[len(name) :]
        return "" if any(name.startswith(text) for name in self._names) else None


def overlap(text: str, tag: str) -> int:
    """The length of the text's longest end that is a beginning of the tag, but not all of it."""
    longest = min(len(text), len(tag) - 1)
    return next((length for length in range(longest, 0, -1) if tag.startswith(text[-length:])), 0)
