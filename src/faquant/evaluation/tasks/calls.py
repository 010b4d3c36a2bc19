"""The task `calls`: questions made from templates must be answered by the right call of a function.

A case is right if the answer has exactly one call, of the right function, with the right arguments. These are compared
as values, not as text: 5 and 5.0 are alike, and so are "Berlin" and "berlin.". Where no function fits, an answer
without calls is right if it ends; a model that says nothing useful can do that, so this is a metric of its own.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ...checkpoint.model_config import load_config
from ...engine.llm import LLM
from ...errors import UsageError
from ...sampling.params import SamplingParams
from ...structured.tools.conversation import Conversation
from ...structured.tools.parser import FunctionCall
from ...text.tokenizer import Tokenizer
from .case_score import CaseScore
from .functions import FUNCTIONS, Function

QUESTIONS = 4
"""About each function, in each part."""
OTHERS = 3
"""Functions that are offered beside the right one."""
MAX_TOKENS = 256
_SEED = 47
_NONE = "no function fits"


@dataclass(frozen=True)
class Case:
    """A question, and the name and the arguments of the right call; None: it is right not to call."""

    question: str
    right: tuple[str, Mapping[str, Any]] | None


@dataclass(frozen=True)
class Group:
    """Questions that are asked with the same functions."""

    part: str
    offered: Sequence[Function]
    cases: Sequence[Case]

    @property
    def metric(self) -> str:
        """What is counted."""
        return "no call" if self.part == _NONE else "right call"


def call_scores(llm: LLM, limit: int | None) -> list[CaseScore]:
    """Whether each answer is right, by part.

    Args:
        limit: the number of questions about each function in each part; None: QUESTIONS.

    Raises:
        UnsupportedError: the model has no chat template, or an unknown format of calls.
        FaquantError: the model cannot answer.
    """
    scores = []
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    for group in groups(min(limit or QUESTIONS, QUESTIONS)):
        answers = llm.chat(
            [[{"role": "user", "content": case.question}] for case in group.cases],
            params,
            tools=[function.tool for function in group.offered],
            tool_choice="auto" if group.part == _NONE else "required",
        )
        for case, answer in zip(group.cases, answers, strict=True):
            right = is_right(case, answer.tool_calls, answer.finish_reason != "length")
            scores.append(CaseScore(group.part, group.metric, float(right), case.question))
    return scores


def groups(questions: int) -> Iterator[Group]:
    """All cases, the same at each call."""
    for number, function in enumerate(FUNCTIONS):
        random = Random(f"{_SEED} {number}")
        asked = [function.ask(random) for _ in range(questions)]
        cases = [Case(question, (function.name, values)) for question, values in asked]
        others = random.sample([other for other in FUNCTIONS if other is not function], OTHERS)
        offered = random.sample([function, *others], OTHERS + 1)
        yield Group("one function", [function], cases)
        yield Group(f"{OTHERS + 1} functions", offered, cases)
        yield Group(_NONE, others, [Case(case.question, None) for case in cases])


def check_calls(directory: Path) -> None:
    """Raises: UsageError, UnsupportedError: the model cannot be asked."""
    conversation, longest = Conversation(Tokenizer.from_directory(directory)), 0
    for group in groups(QUESTIONS):
        tools = [function.tool for function in group.offered]
        for case in group.cases:
            longest = max(longest, len(conversation.encode([{"role": "user", "content": case.question}], tools)))
    context = load_config(directory).max_position
    if longest + MAX_TOKENS > context:
        raise UsageError(
            f"The task calls needs a context of {longest + MAX_TOKENS} tokens with this model's chat template; its "
            f"context is {context}."
        )


def is_right(case: Case, calls: Sequence[FunctionCall], is_complete: bool = True) -> bool:
    """Whether these are the right calls, in an answer that the limit on tokens has not cut off."""
    if case.right is None:
        return is_complete and not calls
    if len(calls) != 1:
        return False
    name, values = case.right
    try:
        arguments = json.loads(calls[0].arguments)
    except ValueError:  # cut off by the limit on tokens
        return False
    return calls[0].name == name and _alike(arguments, dict(values))


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, str) and isinstance(other, str):
        return _plain(one) == _plain(other)
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .!?'\"")
