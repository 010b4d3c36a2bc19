"""Sampling parameters: how the tokens of a request are chosen, and when its answer ends."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UsageError
from ..structured.reasoning import Reasoning
from ..structured.structured_output import StructuredOutput

MAX_STOP_STRINGS = 64
MAX_STOP_LENGTH = 1024
MAX_STOP_TOKENS = 1024
MAX_LOGPROBS = 20
MAX_ANSWERS = 128


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one request are chosen, and when its answer ends. Validated on construction.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep only the k likeliest tokens; 0 or -1 keeps all.
        top_p: keep the likeliest tokens whose probabilities add up to top_p; 1 keeps all.
        min_p: drop tokens whose probability is below min_p times the highest one; 0 keeps all.
        repetition_penalty: above 1 discourages tokens of the prompt and the answer (Keskar et al. 2019,
            arXiv:1909.05858, section 4.1).
        presence_penalty: subtracted once from the logits of tokens that are in the answer (OpenAI's API reference).
        frequency_penalty: subtracted from a token's logit for each time that it is in the answer.
        logit_bias: added to the logits of some tokens, {id: bias}; stored as sorted pairs.
        seed: seed of the random draws; None: one from the operating system.
        n: number of answers, drawn independently.
        max_tokens: maximum tokens of an answer; 0: only read the prompt.
        min_tokens: tokens of an answer before which no end token can be chosen.
        stop: one or more strings; the text ends before the first one that occurs.
        stop_token_ids: tokens that end the answer and are not part of its text.
        ignore_eos: continue up to max_tokens even after the model's end tokens.
        logprobs: report the log-probabilities of each token and of this many of the likeliest ones.
        prompt_logprobs: the same for each token of the prompt but the first. The whole prompt is computed for that, so
            nothing of it is taken from the prefix cache.
        structured_output: the required form of the answer.
        reasoning: what may come before that form. An answer of which all has a form reasons only if the prompt has
            opened the reasoning; otherwise this becomes None.

    Raises:
        UsageError: a value is outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    n: int = 1
    max_tokens: int = 128
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured_output: StructuredOutput | None = None
    reasoning: Reasoning | None = None

    def __post_init__(self) -> None:
        self._check_number("temperature", 0.0, sys.float_info.max, "a finite number of at least 0 (0 is greedy)")
        self._check_number("top_p", 0.0, 1.0, "a number above 0 and at most 1", open_low=True)
        self._check_number("min_p", 0.0, 1.0, "a number from 0 to 1")
        self._check_number("repetition_penalty", 0.01, 100.0, "a number from 0.01 to 100")
        self._check_number("presence_penalty", -2.0, 2.0, "a number from -2 to 2")
        self._check_number("frequency_penalty", -2.0, 2.0, "a number from -2 to 2")
        self._check_integer("top_k", -1, 2**31 - 1, "a whole number of at least 1, or 0 or -1 for all tokens")
        self._check_integer("n", 1, MAX_ANSWERS, f"a whole number from 1 to {MAX_ANSWERS}")
        self._check_integer("max_tokens", 0, 2**31 - 1, "a whole number of at least 0")
        self._check_integer(
            "min_tokens", 0, self.max_tokens, f"a whole number from 0 to max_tokens ({self.max_tokens})"
        )
        if self.seed is not None:
            self._check_integer("seed", -(2**63), 2**64 - 1, "a whole number from -2^63 to 2^64 - 1, or None")
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                self._check_integer(name, 0, MAX_LOGPROBS, f"a whole number from 0 to {MAX_LOGPROBS}, or None")
        if not isinstance(self.ignore_eos, bool):
            raise self._wrong("ignore_eos", "true or false")
        if self.reasoning is not None and not isinstance(self.reasoning, Reasoning):
            raise self._wrong("reasoning", "a Reasoning or None")
        if self.structured_output is not None:
            if not isinstance(self.structured_output, StructuredOutput):
                raise self._wrong("structured_output", "a StructuredOutput or None")
            if self.ignore_eos:
                raise UsageError(
                    "ignore_eos excludes structured output (a response format, or tools), which must end.",
                    "ignore_eos",
                )
            if self.reasoning is not None and self.structured_output.is_whole and not self.reasoning.opened:
                object.__setattr__(self, "reasoning", None)
        object.__setattr__(self, "stop", self._checked_stop(self.stop))
        object.__setattr__(self, "stop_token_ids", self._checked_stop_tokens(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", self._checked_bias(self.logit_bias))

    def _check_number(self, name: str, low: float, high: float, wanted: str, open_low: bool = False) -> None:
        value = getattr(self, name)
        if not _is_number(value) or not low <= value <= high or (open_low and value == low):
            raise self._wrong(name, wanted)
        object.__setattr__(self, name, float(value))

    def _check_integer(self, name: str, low: int, high: int, wanted: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(name, wanted)

    def _checked_stop(self, value: object) -> tuple[str, ...]:
        texts = (value,) if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
            raise self._wrong("stop", "a string or a list of strings, none of them empty")
        if len(texts) > MAX_STOP_STRINGS or any(len(text) > MAX_STOP_LENGTH for text in texts):
            raise UsageError(f"stop takes at most {MAX_STOP_STRINGS} strings of {MAX_STOP_LENGTH} characters.")
        return tuple(texts)

    def _checked_stop_tokens(self, value: object) -> tuple[int, ...]:
        if not isinstance(value, list | tuple) or not all(_is_token_id(item) for item in value):
            raise self._wrong("stop_token_ids", "a list of token ids")
        if len(value) > MAX_STOP_TOKENS:
            raise UsageError(f"stop_token_ids takes at most {MAX_STOP_TOKENS} tokens.")
        return tuple(dict.fromkeys(value))

    def _checked_bias(self, value: object) -> tuple[tuple[int, float], ...]:
        # The pairs themselves are accepted too, because dataclasses.replace passes them.
        pairs = tuple(value.items()) if isinstance(value, Mapping) else value
        if (
            not isinstance(pairs, tuple)
            or not all(isinstance(pair, tuple) and len(pair) == 2 and _is_token_id(pair[0]) for pair in pairs)
            or not all(_is_number(bias) and -100 <= bias <= 100 for _, bias in pairs)
            or len({token for token, _ in pairs}) != len(pairs)
        ):
            raise self._wrong("logit_bias", "a mapping from token ids to numbers from -100 to 100")
        return tuple(sorted((token, float(bias)) for token, bias in pairs))

    def _wrong(self, name: str, wanted: str) -> UsageError:
        value = getattr(self, name)
        # Python refuses to print an integer of many thousand digits.
        shown = "a larger number" if isinstance(value, int) and value.bit_length() > 128 else _shown(value)
        return UsageError(f"{name} must be {wanted}, not {shown}.", name)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_token_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32


def _shown(value: object) -> str:
    try:
        return repr(value)[:200]
    except ValueError:  # it contains an integer that Python refuses to print
        return "something that contains a larger number"
