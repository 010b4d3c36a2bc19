"""Detects where calls begin in an answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SPACE = " \t\r\n"
# Llama 3.1 often writes the type first, as in the tools that it is shown.
_JSON_BEGINNINGS = (("{", '"name"', ":"), ("{", '"type"', ":", '"function"', ",", '"name"', ":"))


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
    """Looks for a tag anywhere in an answer, and for a bare call at its beginning.

    Args:
        beginnings: for each bare call, the last part of its beginning as the model may write it, such as `"weather"` or
            `weather(`, and the normalized beginning.
    """

    def __init__(self, tag: str | None, beginnings: Iterable[tuple[str, str]] = (), python: bool = False) -> None:
        self._tag = tag
        self._beginnings = dict(beginnings)
        self._prefixes = (("[",),) if python else _JSON_BEGINNINGS

    def split(self, text: str, at_start: bool) -> SplitText:
        """Split `text`, the held text followed by new text. at_start: whether it is at the beginning of the answer."""
        if self._tag is not None:
            before, found, after = text.partition(self._tag)
            if found:
                return SplitText(before, "", after)
        if at_start and self._beginnings:
            for prefix in self._prefixes:
                calls = self._bare(text, prefix)
                if calls is not None:
                    return SplitText("", "", calls) if calls else SplitText("", text)
        length = self._beginning_of_tag(text)
        return SplitText(text[: len(text) - length], text[len(text) - length :])

    def _bare(self, text: str, prefix: Sequence[str]) -> str | None:
        """The calls; "" if the text may become a call, None if it cannot."""
        for part in prefix:
            text = text.lstrip(_SPACE)
            if not text.startswith(part):
                return "" if part.startswith(text) else None
            text = text[len(part) :]
        text = text.lstrip(_SPACE)
        for last, beginning in self._beginnings.items():
            if text.startswith(last):
                return beginning + text[len(last) :]
        return "" if any(last.startswith(text) for last in self._beginnings) else None

    def _beginning_of_tag(self, text: str) -> int:
        """The length of the text's longest suffix that is a prefix of the tag."""
        tag = self._tag or ""
        longest = min(len(text), len(tag) - 1)
        return next((length for length in range(longest, 0, -1) if tag.startswith(text[-length:])), 0)
