"""llguidance's view of a tokenizer, and the search for tokens that complete a text of a grammar."""

import json
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

from ..errors import UnsupportedError
from ..text.tokenizer import Tokenizer
from .constraint import Bits

# Bytes in the order in which they are tried to complete a JSON text soon. Between strings, where a line break may come:
# the ends of objects and arrays before their beginnings, a comma before further digits of a number. Within a string
# that must continue, "a" is the best.
_BETWEEN = b'})]",0ntf123456789-:[{'
_WITHIN = b"a})]0ntf123456789-,:[{"
_MAX_STATES = 16
_MAX_ZEROS = 16
_MAX_RESTS = 4096


@dataclass(frozen=True)
class Hints:
    """Tokens that a search for a plan tries first.

    Attributes:
        strings: within strings (where no line break may come), each once per string.
        markup: where not any text may come.
        always: everywhere, but not twice in a row.
    """

    strings: Sequence[list[int]] = ()
    markup: Sequence[list[int]] = ()
    always: Sequence[list[int]] = ()


class Vocabulary:
    """The tokens of a tokenizer, for logits with `size` columns.

    Raises:
        UnsupportedError: the bytes of the tokens cannot be derived from tokenizer.json.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        try:
            self.backend = LLTokenizer(
                tokenizer.to_json(size), n_vocab=size, eos_token=list(tokenizer.eos_token_ids) or None
            )
        except ValueError as error:
            raise UnsupportedError(f"Structured output is not possible with this tokenizer: {error}.") from None
        known = [token for token in range(min(size, tokenizer.vocab_size)) if tokenizer.token_text(token) is not None]
        self._texts = {token: bytes(self.backend.decode_bytes([token])) for token in known}
        self._rests: dict[tuple[int, ...], list[int]] = {}
        sample = '{"key": [1.5, true], "größe": "\\n😀"}'
        ids = tokenizer.encode(sample, add_special_tokens=False)
        if self.text(ids).decode("utf-8", "replace").strip() != tokenizer.decode(ids).strip():
            raise UnsupportedError(
                "Structured output is not possible with this tokenizer: its decoder changes the text."
            )
        self.size = size
        self.text_bits = bits_of(set(known) - set(self.backend.eos_tokens), size)
        self._special = tokenizer.special_token_ids.union(tokenizer.eos_token_ids)
        first: dict[bytes, int] = {}
        for token, text in self._texts.items():
            first.setdefault(text, token)
        single = {text[0]: [token] for text, token in first.items() if len(text) == 1}
        self.quote = [single[byte] for byte in b'"' if byte in single]
        self._line_end = single.get(ord("\n"))
        self._between, self._within = ([single[byte] for byte in row if byte in single] for row in (_BETWEEN, _WITHIN))
        self._plain = [single[byte] for byte in b"q~" if byte in single]
        self._zero = single.get(ord("0"))
        # A second order without zero: zeros alone never exceed 0. (The first has it: ones never make a multiple of 10.)
        self._within_without_zero = [token for token in self._within if token != self._zero]

    def text(self, tokens: Sequence[int]) -> bytes:
        return b"".join(self._texts.get(token, b"") for token in tokens)

    def tokens(self, text: bytes) -> list[int]:
        return list(self.backend.tokenize_bytes(text))

    def rest(self, tokens: Sequence[int], begin: int) -> list[int]:
        """The tokens of the text of `tokens` from its byte `begin` on."""
        key = (*tokens, begin)
        found = self._rests.get(key)
        if found is None:
            if len(self._rests) >= _MAX_RESTS:
                self._rests.clear()
            found = self._rests[key] = self.tokens(self.text(tokens)[begin:])
        return found

    def ends(self, matcher: LLMatcher, plan: Sequence[int]) -> bool:
        """Whether `plan` continues the matcher's text and completes it."""
        return self.valid_length(matcher, plan) == len(plan) + 1

    def valid_length(self, matcher: LLMatcher, plan: Sequence[int]) -> int:
        """How many tokens of `plan`, followed by an end token, continue the matcher's text."""
        return int(matcher.validate_tokens([*plan, self.backend.eos_token]))

    def special(self, text: str | None) -> list[int]:
        """The special token with this text, as a list; empty if there is none."""
        found = self.tokens(text.encode()) if text else []
        return found if len(found) == 1 and found[0] in self._special else []

    def symbol(self, text: str) -> str:
        """The symbol for a text in llguidance's Lark dialect: a single token if there is one, else a string."""
        found = self.tokens(text.encode())
        return f"<[{found[0]}]>" if len(found) == 1 else json.dumps(text)

    def shown_text(self, token: int, shown: Collection[int]) -> bytes:
        """The bytes that a token adds to an answer; none for special tokens, unless they are in `shown`."""
        return self.text([token]) if self.is_text(token) or token in shown else b""

    def is_text(self, token: int) -> bool:
        """Whether a token is text in answers, not a special token."""
        return token not in self._special

    def find_plan(self, matcher: LLMatcher, hints: Hints, effort: int) -> list[int] | None:
        """Tokens that complete the matcher's text, few but not always the fewest; None if none are found.

        The search is greedy. If it fails, it is repeated from the following states, breadth first, with one token for
        each first byte. States in which the same tokens may come next count as equal.
        """
        waiting: deque[tuple[LLMatcher, list[int]]] = deque([(matcher, [])])
        seen = set()
        steps = effort
        for _ in range(_MAX_STATES):
            if not waiting:
                break
            state, before = waiting.popleft()
            after = self._greedy_plan(state.deep_copy(), hints, self._within, steps)
            if after is None:
                steps = effort // _MAX_STATES
                after = self._greedy_plan(state.deep_copy(), hints, self._within_without_zero, steps)
            if after is not None:
                plan = before + after
                merged = self.tokens(self.text(plan))
                return merged if len(merged) < len(plan) and self.ends(matcher, merged) else plan
            allowed = self._allowed(state)
            if allowed.tobytes() not in seen:
                seen.add(allowed.tobytes())
                for token in self._one_of_each_kind(allowed):
                    child = state.deep_copy()
                    if child.consume_token(token):
                        waiting.append((child, [*before, token]))
        return None

    def _greedy_plan(
        self, matcher: LLMatcher, hints: Hints, within: Sequence[list[int]], steps: int
    ) -> list[int] | None:
        """Repeatedly take the first choice that is allowed."""
        plan: list[int] = []
        unused = list(hints.strings)
        zeros = 0
        for _ in range(steps):
            if matcher.is_accepting():
                return plan
            step = matcher.compute_ff_tokens()
            if not step:
                any_text = all(matcher.validate_tokens(some) for some in self._plain)
                if self._line_end is None or not matcher.validate_tokens(self._line_end):
                    choices: Sequence[list[int]] = (*unused, *within)
                else:  # a quote ends no string that may have line breaks
                    choices = [some for some in unused if some not in self.quote] if any_text else self._between
                always = (some for some in hints.always if plan[-len(some) :] != some)  # it did not end the text
                choices = (*always, *(() if any_text else hints.markup), *choices)
                step = next((some for some in choices if matcher.validate_tokens(some) == len(some)), [])
            if not step:
                step = np.flatnonzero(self._allowed(matcher))[:1].tolist()
            if not step or not matcher.consume_tokens(step):
                return None
            plan += step
            zeros = zeros + 1 if step == self._zero else 0
            if zeros > _MAX_ZEROS:
                return None
            if step in self.quote:
                unused = list(hints.strings)
            elif step in unused:
                unused.remove(step)  # a hint that may be repeated forever completes nothing
        return None

    def _one_of_each_kind(self, allowed: npt.NDArray[np.bool_]) -> list[int]:
        kinds: dict[bytes, int] = {}
        for token in np.flatnonzero(allowed)[:4096].tolist():
            kinds.setdefault(self.text([token])[:1], token)
        return list(kinds.values())

    def _allowed(self, matcher: LLMatcher) -> npt.NDArray[np.bool_]:
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)[: self.text_bits.size] & self.text_bits
        return np.unpackbits(bits, bitorder="little").view(np.bool_)


def bits_of(tokens: Collection[int], size: int) -> Bits:
    """A bit for each of `size` tokens: token n is bit n % 8, from the lowest, of byte n // 8."""
    flags = np.zeros(size, np.uint8)
    flags[[token for token in tokens if token < size]] = 1
    return np.packbits(flags, bitorder="little")
