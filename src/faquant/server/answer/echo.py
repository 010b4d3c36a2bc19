"""`echo`: a completion that begins with its prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...text.detokenizer import IncrementalDecoder
from ...text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Echo:
    """A prompt as text and as token ids, and the character at which each token begins."""

    text: str
    ids: Sequence[int]
    offsets: Sequence[int]


def echo_of_text(tokenizer: Tokenizer, text: str) -> Echo:
    """Raises: UsageError: as Tokenizer.encode."""
    return Echo(text, *tokenizer.encode_with_offsets(text))


def echo_of_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> Echo:
    """The text has the special tokens among `ids`."""
    decoder = IncrementalDecoder(tokenizer, skip_special_tokens=False)
    pieces: list[str] = []
    offsets, length = [], 0
    for token in ids:
        offsets.append(length)
        pieces.append(decoder.push(token))
        length += len(pieces[-1])
    return Echo("".join(pieces) + decoder.flush(), ids, offsets)
