"""Replays a trace of requests and measures throughput and latency."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import quantiles

from ..engine.engine import Engine
from ..engine.request import Request
from ..sampling.params import SamplingParams

LONGEST_ANSWER = 128


@dataclass(frozen=True)
class Arrival:
    """A request of a trace: its arrival time in seconds, its prompt, and the number of tokens to generate."""

    at: float
    prompt: tuple[int, ...]
    tokens: int


def trace(
    texts: Sequence[Sequence[int]], count: int, rate: float = 0.0, longest: int = 2048, seed: int = 0
) -> list[Arrival]:
    """Generate `count` requests whose prompts are pieces of tokenized texts. Deterministic.

    The lengths resemble those of chats: log-normal around 200 tokens for prompts, 16 to LONGEST_ANSWER tokens for
    answers. A quarter of the prompts share a prefix. The requests arrive as a Poisson process with `rate` per second;
    0: all at once.
    """
    random, at, requests = Random(seed), 0.0, []
    size = min(300, longest // 4)
    begin = random.randrange(max(1, len(texts[0]) - size))
    common = texts[0][begin : begin + size]
    for _ in range(count):
        at += random.expovariate(rate) if rate else 0.0
        text = random.choice(texts)
        length = max(1, min(int(random.lognormvariate(5.3, 0.9)), longest - len(common)))
        begin = random.randrange(max(1, len(text) - length))
        beginning = common if random.random() < 0.25 else ()
        requests.append(Arrival(at, (*beginning, *text[begin : begin + length]), random.randint(16, LONGEST_ANSWER)))
    return requests


@dataclass(frozen=True)
class TraceResult:
    """The measurements of a replayed trace.

    Attributes:
        seconds: from the first arrival to the end of the last answer.
        tokens: tokens of all answers.
        prompt_tokens: tokens of all prompts.
        first_token: for each request, seconds from its arrival to its first token.
        per_token: for each request, mean seconds per further token.
        overhead: the fraction of the time spent outside the model; None if unknown.
    """

    seconds: float
    tokens: int
    prompt_tokens: int
    first_token: list[float]
    per_token: list[float]
    overhead: float | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    def figures(self) -> dict[str, float]:
        """The figures for tables; times in seconds."""
        return {
            "requests_per_second": len(self.first_token) / self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds,
            "first_token_p50": percentile(self.first_token, 50),
            "first_token_p99": percentile(self.first_token, 99),
            "per_token_p50": percentile(self.per_token, 50),
            "per_token_p99": percentile(self.per_token, 99),
            "overhead": self.overhead or 0.0,
        }


def percentile(values: Sequence[float], percent: int) -> float:
    """A percentile, linearly interpolated."""
    return quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


def replay(engine: Engine, requests: Sequence[Arrival]) -> TraceResult:
    """Submit the requests at their arrival times, and answer them greedily to their full length.

    Raises:
        UsageError: a request does not fit the engine.
        FaquantError: an answer could not be finished.
    """
    before, begin = engine.stats(), time.monotonic()
    waiting = list(reversed(requests))
    arrived: list[tuple[float, Request]] = []
    while waiting or engine.has_work:
        now = time.monotonic() - begin
        while waiting and waiting[-1].at <= now:
            item = waiting.pop()
            params = SamplingParams(temperature=0, max_tokens=item.tokens, ignore_eos=True)
            arrived += [(begin + item.at, request) for request in engine.add(item.prompt, params)]
        if not engine.step() and waiting and not engine.has_work:
            time.sleep(max(0.0, waiting[-1].at - (time.monotonic() - begin)))
    seconds, after = time.monotonic() - begin, engine.stats()
    for _, request in arrived:
        if request.error is not None:
            raise request.error
    steps = after.step_seconds - before.step_seconds
    return TraceResult(
        seconds=seconds,
        tokens=sum(len(request.answer_ids) for _, request in arrived),
        prompt_tokens=sum(request.prompt_length for _, request in arrived),
        first_token=[request.first_token - at for at, request in arrived],
        per_token=[
            (request.finished - request.first_token) / (len(request.answer_ids) - 1)
            for _, request in arrived
            if len(request.answer_ids) > 1
        ],
        overhead=1 - (after.model_seconds - before.model_seconds) / steps if steps else None,
    )
