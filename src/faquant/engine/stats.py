"""What an engine has done and what it holds."""

from dataclasses import dataclass, field


@dataclass
class Stats:
    """Counted since the engine was made.

    Attributes:
        steps, step_seconds, model_seconds: model_seconds is the part that the model took.
        prompt_tokens: of the prompts that were answered, each once for all its answers; cached_tokens of them were
            found in the cache.
        prefilled_tokens: that went through the model as part of a prompt, or again after a preemption.
        generated_tokens: of the answers.
        guessed_tokens, accepted_tokens: by speculation.
        preemptions: how often a request gave its pages back to an older one.
        finished: requests by finish_reason.
    """

    steps: int = 0
    step_seconds: float = 0.0
    model_seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    preemptions: int = 0
    finished: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """What an engine holds now: sequences that run and that wait, pages of the cache that sequences hold, pages that
    only the prefix cache keeps, all pages, and what they take in bytes."""

    running: int
    waiting: int
    used_pages: int
    cached_pages: int
    num_pages: int
    page_size: int
    cache_bytes: int
