"""The task `needle`: a number that occurs once, at some depth of a long text, must be repeated at its end."""

from collections.abc import Iterator, Mapping
from functools import partial
from random import Random

from ...engine.llm import LLM
from ...errors import UsageError
from ...sampling.params import SamplingParams
from ..needle import SHORTEST, haystack
from .case_score import CaseScore

DEPTHS = (0, 25, 50, 75, 100)
"""In percent of the text before the number."""
LONGEST = 8192
TRIALS = 2
_SEED = 31


def needle_scores(llm: LLM, texts: Mapping[str, str], limit: int | None) -> list[CaseScore]:
    """Whether each needle is found, by length and depth.

    Args:
        texts: what the needles are hidden in.
        limit: the number of needles of each length and depth; None: TRIALS.

    Raises:
        FaquantError: the model cannot answer.
    """
    encode = partial(llm.tokenizer.encode, add_special_tokens=False)
    filler = [token for text in texts.values() for token in encode(text)]
    parts, hays, prompts, params, answers = [], [], [], [], []
    for length in lengths(llm.model.max_position):
        for depth in DEPTHS:
            for trial in range(min(limit or TRIALS, TRIALS)):
                # The same hay at each depth, so that the engine computes what comes before the needles once.
                start = Random(f"{_SEED} {length} {trial}").randrange(len(filler))
                number = Random(f"{_SEED} {length} {depth} {trial}").randint(10_000, 99_999)
                hay = filler[start:] + filler[:start]
                prompt, answer = haystack(encode, hay, length, depth / 100, number)
                hays.append(f"{length} {trial}")
                parts.append(f"{length:,} tokens, depth {depth} %")
                prompts.append(prompt)
                params.append(SamplingParams(temperature=0.0, max_tokens=len(answer)))
                answers.append(tuple(answer))
    found = llm.generate(prompts, params)
    return [
        CaseScore(part, "found", float(one.token_ids == answer), hay)
        for part, hay, one, answer in zip(parts, hays, found, answers, strict=True)
    ]


def check_needles(context: int, texts: Mapping[str, str]) -> None:
    """Raises: UsageError: there is nothing to hide needles in, or the context is too short."""
    if context < SHORTEST:
        raise UsageError(f"The task needle needs a context of {SHORTEST} tokens; this model has {context}.")
    if not any(text.strip() for text in texts.values()):
        raise UsageError("There is no text to hide needles in.")


def lengths(context: int) -> Iterator[int]:
    """The lengths in tokens: 512, 2,048, … up to LONGEST or the context."""
    length = SHORTEST
    while length <= min(LONGEST, context):
        yield length
        length *= 4
