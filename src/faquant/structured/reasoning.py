"""Reasoning: the part of an answer between `<think>` and `</think>`, before anything else.

Qwen3 writes both tags itself, unless its template has closed the part already. The templates of DeepSeek-R1-Distill
open it at the end of the prompt, so that the answer begins within.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ..errors import FaquantError, UsageError
from ..text.tokenizer import Tokenizer
from .constraint import Bits, Constraint
from .tools.opening import overlap
from .vocabulary import Vocabulary

BEGIN, END = "<think>", "</think>"
PARSERS = ("qwen3", "deepseek_r1")
"""The kinds of reasoning, named as in vLLM's `--reasoning-parser`: an answer may begin with a part, or always does."""
_LAST_TOKENS = 16
_USER = {"role": "user", "content": "Hello"}


@dataclass(frozen=True)
class Reasoning:
    """The reasoning of the answers to one prompt.

    Attributes:
        opened: whether the prompt has opened it.
        expected: whether the answer begins within it, even if the prompt has not opened it; otherwise only with
            `<think>`.
        end_id: the token `</think>`; None if it is spelled with several.
    """

    opened: bool
    expected: bool
    end_id: int | None = None


class Reasoner:
    """Knows how a model reasons. kind: one of PARSERS."""

    def __init__(self, tokenizer: Tokenizer, kind: str) -> None:
        self._tokenizer = tokenizer
        self.kind = kind
        ids = tokenizer.encode(END, add_special_tokens=False)
        self._end_id = ids[0] if len(ids) == 1 else None

    def of_prompt(self, ids: Sequence[int]) -> Reasoning | None:
        """The reasoning of the answers to a prompt; None if the prompt has closed it."""
        end = self._tokenizer.decode(ids[-_LAST_TOKENS:], skip_special_tokens=False).rstrip()
        if end.endswith(END):
            return None
        opened = end.endswith(BEGIN)
        return Reasoning(opened, opened or self.kind == "deepseek_r1", self._end_id)


def reasoner_of(tokenizer: Tokenizer, kind: str = "auto") -> Reasoner | None:
    """How a model reasons; None: not at all.

    kind: one of PARSERS, none, or auto: deepseek_r1 if the chat template opens the reasoning, otherwise qwen3 if
        `</think>` is a token or occurs in the template.

    Raises:
        UsageError: kind is none of these.
    """
    if kind not in ("auto", "none", *PARSERS):
        raise UsageError(f"reasoning_parser must be auto, none or one of {', '.join(PARSERS)}.")
    if kind == "auto":
        kind = _recognized(tokenizer)
    return None if kind == "none" else Reasoner(tokenizer, kind)


def _recognized(tokenizer: Tokenizer) -> str:
    try:
        prompt, template = tokenizer.render_chat([_USER]), tokenizer.chat_template or ""
    except FaquantError:  # there is no template, or it is broken, which requests report
        return "none"
    if prompt.rstrip().endswith(BEGIN):
        return "deepseek_r1"
    return "qwen3" if END in template or len(tokenizer.encode(END, add_special_tokens=False)) == 1 else "none"


def shown_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """The special tokens that are tags of the reasoning, and so part of the answer's text."""
    return frozenset(token for token in tokenizer.special_token_ids if tokenizer.token_text(token) in (BEGIN, END))


class ReasoningParser:
    """Splits an answer's text into the reasoning and the rest, piece by piece, without the tags and space at them."""

    def __init__(self, reasoning: Reasoning) -> None:
        self._held = ""
        self._expected = reasoning.expected
        self._begun = False  # the reasoning has text
        self._is_first = True  # the rest has no text yet
        self.state = "begin"
        """begin, reasoning, or rest."""
        self.has_reasoning = False
        """Whether the answer has such a part, perhaps an empty one."""

    def push(self, text: str) -> tuple[str, str]:
        """The parts of the reasoning and of the rest that are certain with this text."""
        self._held += text
        if self.state == "begin":
            start = self._held.lstrip()
            if not start.startswith(BEGIN) and BEGIN.startswith(start):
                return "", ""
            if start.startswith(BEGIN):
                self.state, self._held = "reasoning", start.removeprefix(BEGIN)
            elif self._expected:
                self.state = "reasoning"
            else:
                self.state, self._is_first = "rest", False
            self.has_reasoning = self.state == "reasoning"
        thought = self._thought() if self.state == "reasoning" else ""
        return thought, self._rest() if self.state == "rest" else ""

    def flush(self) -> tuple[str, str]:
        """End the answer."""
        held, self._held = self._held, ""
        if self.state == "begin" and not self._expected:
            return "", held
        return (held.rstrip(), "") if self.state == "reasoning" else ("", held)

    def _thought(self) -> str:
        text, found, rest = self._held.partition(END)
        if found:
            self.state, self._held = "rest", rest
            text = text.rstrip()
        else:
            # Space and the beginning of a tag are held back: the reasoning may end with them.
            end = re.search(rf"\s*(?:{'|'.join(re.escape(END[:length]) for length in range(len(END), -1, -1))})$", text)
            cut = len(text) if end is None else end.start()
            text, self._held = text[:cut], text[cut:]
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return text

    def _rest(self) -> str:
        text, self._held = self._held, ""
        if self._is_first:
            text = text.lstrip()
            self._is_first = not text
        return text


def split_reasoning(reasoning: Reasoning, text: str) -> tuple[str, str]:
    """The reasoning and the rest of a complete answer."""
    parser = ReasoningParser(reasoning)
    (thought, rest), (last_thought, last_rest) = parser.push(text), parser.flush()
    return thought + last_thought, rest + last_rest


class ReasoningConstraint:
    """The `Constraint` of an answer that may reason before another constraint begins.

    If that one has a `reserve`, the answer ends with it: the reasoning ends early enough for a tag and as many tokens.
    Otherwise the answer may also end within the reasoning.

    Args:
        begin: creates the other constraint.
        reserve: tokens that the other constraint needs; None: its answer may be empty.
        shown: special tokens that are tags of the reasoning.
    """

    def __init__(
        self,
        reasoning: Reasoning,
        vocabulary: Vocabulary,
        end_token_ids: Collection[int],
        begin: Callable[[], Constraint],
        reserve: int | None,
        shown: frozenset[int],
    ) -> None:
        self._vocabulary = vocabulary
        self._ends = frozenset(end_token_ids)
        self._begin = begin
        self._reserve = reserve
        self._after = begin()
        self.shown = self._after.shown | shown
        self._state = "reasoning" if reasoning.opened or reasoning.expected else "begin"
        self._text = ""
        """What may become a tag, a character per byte of UTF-8."""
        self._plan = end_plan(vocabulary)
        self._count = 0
        self._start = 0
        self._ended = False
        self._tried: tuple[int, str, list[int]] | None = None

    @property
    def _is_reasoning(self) -> bool:
        return self._state == "reasoning"

    @property
    def unwatched_from(self) -> int | None:
        begin = None if self._is_reasoning else self._after.unwatched_from
        return None if begin is None else self._start + begin

    @property
    def is_cut(self) -> bool:
        return not self._is_reasoning and self._after.is_cut

    @property
    def is_past_end(self) -> bool:
        return not self._is_reasoning and self._after.is_past_end

    @property
    def may_end(self) -> bool:
        return self._reserve is None if self._is_reasoning else self._after.may_end

    @property
    def must_end(self) -> bool:
        return self._ended if self._is_reasoning else self._after.must_end

    @property
    def is_free(self) -> bool:
        return self._is_reasoning or self._after.is_free

    def mask(self) -> Bits | None:
        return None if self._is_reasoning else self._after.mask()

    def admits(self, token: int, left: int) -> bool:
        if not self._is_reasoning:
            return self._after.admits(token, left)
        self._tried = None
        if token in self._ends:
            self._tried = (token, "", [])
            return self._reserve is None
        text = self._text + self._shown_text(token)
        _, found, rest = text.partition(END)
        if rest.strip():
            return False  # such a token would begin the answer within itself
        plan = [] if found else self._plan_after(token, text)
        if self._reserve is not None and len(plan) + self._reserve > left:
            return False
        self._tried = (token, text, plan)
        return True

    def fallback(self) -> int:
        if not self._is_reasoning:
            return self._after.fallback()
        return min(self._ends) if self._reserve is None else self._plan[0]

    def accept(self, token: int) -> None:
        self._count += 1
        if not self._is_reasoning:
            self._after.accept(token)
            if self._state == "begin":
                self._begin_with(self._text + self._shown_text(token))
            return
        if self._tried is None or self._tried[0] != token:
            raise UsageError(f"The token {token} was not admitted before it was accepted.")
        _, text, self._plan = self._tried
        self._tried = None
        if token in self._ends:
            self._ended = True
        elif END in text:
            self._state, self._start = "rest", self._count
        self._text = text[len(text) - overlap(text, END) :]

    def _begin_with(self, text: str) -> None:
        """Decide whether the answer begins with reasoning. Until then, the other constraint reads it too."""
        start = text.lstrip()
        if start.startswith(BEGIN):
            self._state, self._text, self._after = "reasoning", start[len(BEGIN) :], self._begin()
        elif BEGIN.startswith(start):
            self._text = text
        else:
            self._state, self._text = "rest", ""

    def _shown_text(self, token: int) -> str:
        return self._vocabulary.shown_text(token, self.shown).decode("latin-1")

    def _plan_after(self, token: int, text: str) -> list[int]:
        """Tokens that end the reasoning after `token`."""
        if self._plan[:1] == [token]:
            return self._plan[1:]
        return list(self._vocabulary.tokens(END[overlap(text, END) :].encode()))


def end_plan(vocabulary: Vocabulary) -> list[int]:
    """Tokens that end the reasoning."""
    return list(vocabulary.tokens(END.encode()))
