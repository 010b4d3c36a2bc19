"""Where in an answer its calls begin."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SPACE = " \t\r\n"
# Llama 3.1 often writes the type first, as it stands in the tools that it is shown.
_JSON_BEGINNINGS = (("{", '"name"', ":"), ("{", '"type"', ":", '"function"', ",", '"name"', ":"))


@dataclass(frozen=True)
class Seen:
    """What is known of a text that may go on.

    text: certain to be no call. held: may become the beginning of one. calls: what follows a tag, or from a bare call
    on, that one's beginning written as the grammar has it; None where nothing has begun.
    """

    text: str
    held: str
    calls: str | None = None


class Opening:
    """Looks for a tag anywhere, and at the beginning of an answer for a bare call.

    beginnings: of bare calls, each by its last part as the model may write it, such as `"weather"` or `weather(`.
    """

    def __init__(self, tag: str | None, beginnings: Iterable[tuple[str, str]] = (), python: bool = False) -> None:
        self._tag = tag
        self._beginnings = dict(beginnings)
        self._prefixes = (("[",),) if python else _JSON_BEGINNINGS

    def look(self, text: str, at_start: bool) -> Seen:
        """At `text`: what was held before and what is new. at_start: whether nothing was let go before it."""
        if self._tag is not None:
            before, found, after = text.partition(self._tag)
            if found:
                return Seen(before, "", after)
        if at_start and self._beginnings:
            for prefix in self._prefixes:
                calls = self._bare(text, prefix)
                if calls is not None:
                    return Seen("", "", calls) if calls else Seen("", text)
        length = self._beginning_of_tag(text)
        return Seen(text[: len(text) - length], text[len(text) - length :])

    def _bare(self, text: str, prefix: Sequence[str]) -> str | None:
        """The calls, "" where the text may become one, None where it cannot."""
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
        """Characters at the end of the text that a tag may begin with."""
        tag = self._tag or ""
        longest = min(len(text), len(tag) - 1)
        return next((length for length in range(longest, 0, -1) if tag.startswith(text[-length:])), 0)
