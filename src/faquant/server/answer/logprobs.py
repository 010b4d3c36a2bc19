"""Log-probabilities in OpenAI's formats, with the text and bytes of the tokens."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from tokenizers import pre_tokenizers

from ...engine.request import TokenLogprobs
from ...text.tokenizer import Tokenizer
from ..schema.responses import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from .echo import Echo

_LOWEST = -9999.0  # JSON has no infinity; vLLM writes this


class TokenTexts:
    """The text and bytes of each token in a vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        kinds = set(_kinds(tokenizer.decoder_description))
        self._letters = _byte_letters() if "ByteLevel" in kinds else None
        self._has_byte_tokens = "ByteFallback" in kinds
        self._marks_spaces = bool(kinds & {"Replace", "Metaspace"})

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of a token, which may be incomplete characters."""
        text = self._tokenizer.token_text(token_id)
        if text is None:
            return b""
        if self._letters is not None and token_id not in self._tokenizer.special_token_ids:
            found = [self._letters.get(letter) for letter in text]
            return bytes(byte for byte in found if byte is not None) if None not in found else text.encode()
        if self._has_byte_tokens and len(text) == 6 and text.startswith("<0x"):
            return bytes([int(text[3:5], 16)])
        return (text.replace("▁", " ") if self._marks_spaces else text).encode()

    def text_of(self, token_id: int) -> str:
        """The text of a token. Incomplete characters are written as by OpenAI, such as bytes:\\xe2\\x80."""
        raw = self.bytes_of(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def chat(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> ChatLogprobs:
        """In the format of chat completions."""
        content = []
        for token_id, (logprob, top) in zip(ids, logprobs, strict=True):
            others = [self._entry(*pair) for pair in top]
            content.append(TokenLogprob(**dict(self._entry(token_id, logprob)), top_logprobs=others))
        return ChatLogprobs(content=content, refusal=None)

    def completion(
        self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs], offset: int, echo: Echo | None = None
    ) -> CompletionLogprobs:
        """In the format of plain completions, for tokens that begin at character `offset`.

        echo: the prompt, which comes first; `logprobs` begins with those of its tokens but the first.
        """
        prompt = [] if echo is None else echo.ids
        offsets = [offset]
        for token_id in ids:
            offsets.append(offsets[-1] + self.width(token_id))
        scores: list[float | None] = [max(logprob, _LOWEST) for logprob, _ in logprobs]
        tops: list[dict[str, float] | None] = []
        for _, top in logprobs:
            # If two tokens have the same text, the likelier one is reported.
            tops.append({self.text_of(other): max(value, _LOWEST) for other, value in reversed(top)})
        return CompletionLogprobs(
            tokens=[self.text_of(token_id) for token_id in (*prompt, *ids)],
            token_logprobs=[None, *scores] if prompt else scores,
            top_logprobs=[None, *tops] if prompt else tops,
            text_offset=[*([] if echo is None else echo.offsets), *offsets[:-1]],
        )

    def width(self, token_id: int) -> int:
        """The number of characters that begin in a token."""
        return sum(byte & 0xC0 != 0x80 for byte in self.bytes_of(token_id))

    def _entry(self, token_id: int, logprob: float) -> TopLogprob:
        raw = self.bytes_of(token_id)
        return TopLogprob(token=self.text_of(token_id), logprob=max(logprob, _LOWEST), bytes=list(raw))


def _kinds(decoder: Mapping[str, Any] | None) -> list[str]:
    if decoder is None:
        return []
    return [str(decoder.get("type")), *(kind for step in decoder.get("decoders", ()) for kind in _kinds(step))]


@cache
def _byte_letters() -> dict[str, int]:
    """The letters that byte-level vocabularies write bytes with (Radford et al. 2019, GPT-2's encoder.py)."""
    # Printable bytes are written as themselves; the others as U+0100 and following, in order.
    letters = set(pre_tokenizers.ByteLevel.alphabet())
    own = {letter: ord(letter) for letter in letters if ord(letter) < 256}
    rest = sorted(set(range(256)) - set(own.values()))
    return own | dict(zip(sorted(letters - own.keys()), rest, strict=True))
