"""Counters and the current state of an engine."""

from dataclasses import dataclass, field


@dataclass
class Stats:
    """Counters since the engine was created.

    Attributes:
        steps: number of steps.
        step_seconds: time of all steps.
        model_seconds: the part of it spent in the model.
        prompt_tokens: tokens of prompts, counted once per prompt even with several answers.
        cached_tokens: those of them found in the prefix cache.
        prefilled_tokens: tokens computed for prompts, or again after a preemption.
        generated_tokens: tokens of answers, counted when they are returned.
        discarded_tokens: tokens that were drawn but not returned, because the answer did not have the required form, or
            was not finished before it could be checked.
        draft_tokens: tokens proposed by speculation.
        accepted_tokens: those of them that were drawn.
        preemptions: how often a sequence lost its pages to an older one.
        invalid_answers: answers that did not have the required form, and were drawn again or failed.
        finished: number of requests by finish_reason.
    """

    steps: int = 0
    step_seconds: float = 0.0
    model_seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    discarded_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    preemptions: int = 0
    invalid_answers: int = 0
    finished: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """The current state of an engine.

    Attributes:
        running, waiting: number of sequences.
        used_pages: cache pages held by sequences.
        cached_pages: pages held only by the prefix cache.
        num_pages: all pages.
        page_size: tokens per page.
        cache_bytes: size of the whole cache.
    """

    running: int
    waiting: int
    used_pages: int
    cached_pages: int
    num_pages: int
    page_size: int
    cache_bytes: int
