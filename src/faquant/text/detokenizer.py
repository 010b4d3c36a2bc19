"""Incremental detokenization: text is returned as soon as no later token can change it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_REPLACEMENT = "\ufffd"
_LONG_WINDOW = 16
_LOCAL_STEPS = {"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip"}


class IncrementalDecoder:
    """Decodes a token stream piece by piece. The pieces and `flush` together equal `Tokenizer.decode` of all ids.

    Text that a later token can change is held back: an incomplete UTF-8 character, and a run of byte tokens (such as
    <0xE2>) until it ends, because one invalid byte changes how the whole run is decoded. Each push decodes only a few
    tokens: those not yet final, after a few earlier ones from which the decoder can strip what it strips from the
    beginning of a text. If the decoder does not allow this, all text is returned by `flush`.

    Args:
        shown: special tokens that are part of the text even if other special tokens are skipped.
    """

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool = True, shown: frozenset[int] = frozenset()
    ) -> None:
        self._tokenizer = tokenizer
        self._shown = shown
        self._skip = skip_special_tokens
        steps = list(_flat(tokenizer.decoder_description))
        kinds = {step.get("type") for step in steps}
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self._streams = _can_stream(steps)
        self._reset()

    def _reset(self) -> None:
        self._first: list[int] = []  # decoded together with the window; their text is then removed
        self._first_length = 0
        self._window: list[int] = []
        self._emitted = 0  # characters of the window's text that have been returned

    def push(self, token_id: int) -> str:
        """Add a token and return the text that became final: often a word, sometimes nothing."""
        token = self._tokenizer.token_text(token_id)
        if token is not None and token_id in self._shown:
            return self.flush() + token
        if token is None or (self._skip and token_id in self._tokenizer.special_token_ids):
            return ""
        self._window.append(token_id)
        if not self._streams or (self._byte_fallback and _BYTE_TOKEN.fullmatch(token)):
            return ""
        text = self._window_text()
        unfinished = self._byte_level and text.endswith(_REPLACEMENT)
        final = text[:-1] if unfinished else text
        piece = final[self._emitted :]
        self._emitted = len(final)
        if not unfinished:
            self._close_window()
        elif len(self._window) > _LONG_WINDOW:
            self._shorten_window(text)
        return piece

    def flush(self) -> str:
        """End the stream and return the text held back. A new stream may begin afterwards."""
        rest = self._window_text()[self._emitted :] if self._window else ""
        self._reset()
        return rest

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, self._skip)

    def _window_text(self) -> str:
        return self._decode(self._first + self._window)[self._first_length :]

    def _close_window(self) -> None:
        if not self._first_length:
            tokens = self._first + self._window
            # The shortest end with text suffices; a longer one would cost time at each token.
            self._first = next((tokens[-n:] for n in range(1, len(tokens)) if self._decode(tokens[-n:])), tokens)
            self._first_length = len(self._decode(self._first))
        self._window, self._emitted = [], 0

    def _shorten_window(self, text: str) -> None:
        # The window ends with many bytes that are not UTF-8, of which at most three can belong to an incomplete
        # character. If both parts decode to the same text as the whole, the cut does not split a character.
        cut = len(self._window) - 4
        head, tail = self._window[:cut], self._window[cut:]
        tail_text = self._decode(tail)
        if self._decode(self._first + head)[self._first_length :] + tail_text == text:
            self._window = head
            self._close_window()
            self._window, self._emitted = tail, len(tail_text) - 1


def _can_stream(steps: list[Mapping[str, Any]]) -> bool:
    fused = False
    for step in steps:
        kind = step.get("type")
        if kind not in _LOCAL_STEPS or step.get("stop") or (fused and kind not in ("Fuse", "Strip")):
            return False
        fused = fused or kind in ("Fuse", "ByteLevel")
    return True


def _flat(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if decoder is None:
        return
    if decoder.get("type") == "Sequence":
        for step in decoder.get("decoders", ()):
            yield from _flat(step)
    else:
        yield decoder
