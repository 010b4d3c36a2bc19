"""What Prometheus is told: the engine's counters as they are when it asks, and times of requests."""

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ...engine.engine import Engine
from ...kernels import isa as cpu
from ...kernels import threads
from .record import Record

_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PER_TOKEN = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1)
_REQUEST = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_COUNTERS = {
    "steps": "Steps of the engine",
    "step_seconds": "Seconds that steps took",
    "model_seconds": "Seconds of them in the model",
    "prompt_tokens": "Tokens of prompts, once for all answers to one",
    "cached_tokens": "Tokens of prompts that were found in the cache, once for all answers to one",
    "prefilled_tokens": "Tokens of prompts that went through the model",
    "generated_tokens": "Tokens of answers",
    "draft_tokens": "Tokens guessed by speculation",
    "accepted_tokens": "Guessed tokens that were right",
    "preemptions": "Sequences that gave their pages back to older ones",
}
_GAUGES = {
    "running": ("sequences_running", "Sequences that are answered"),
    "waiting": ("sequences_waiting", "Sequences that wait for pages or a place"),
    "used_pages": ("cache_pages_used", "Pages of the cache that sequences hold"),
    "cached_pages": ("cache_pages_idle", "Pages that only the prefix cache keeps"),
    "num_pages": ("cache_pages", "Pages of the cache"),
    "page_size": ("cache_page_tokens", "Tokens of a page"),
    "cache_bytes": ("cache_bytes", "Bytes of the cache"),
}


class Metrics:
    """A registry of its own for each server."""

    def __init__(self, engine: Engine, name: str, version: str) -> None:
        self._engine = engine
        self._registry = CollectorRegistry()
        info = Info("faquant", "What is served, and how", registry=self._registry)
        info.info(
            {
                "version": version,
                "model": name,
                "kernels": cpu.selected_isa(),
                "threads": str(threads.count()),
                "kv_cache_dtype": engine.config.kv_cache_dtype,
                "cache_bytes_per_token": str(engine.bytes_per_token),
                "max_model_len": str(engine.max_model_len),
            }
        )
        self._requests = Counter(
            "faquant_http_requests", "Requests", ["method", "path", "status"], registry=self._registry
        )
        self._first_token = Histogram(
            "faquant_first_token_seconds",
            "From the request to its first token",
            buckets=_FIRST_TOKEN,
            registry=self._registry,
        )
        self._per_token = Histogram(
            "faquant_per_token_seconds",
            "Between tokens of an answer, in the mean of a request",
            buckets=_PER_TOKEN,
            registry=self._registry,
        )
        self._seconds = Histogram(
            "faquant_request_seconds", "Of requests that were answered", buckets=_REQUEST, registry=self._registry
        )
        self._registry.register(self)

    def observe(self, record: Record, route: str) -> None:
        """Take a request that has ended into account; `route` is its path as the application has it."""
        self._requests.labels(record.method, route, record.status).inc()
        if record.first_token is None:
            return
        self._first_token.observe(record.first_token)
        if record.status != 200:
            return
        self._seconds.observe(record.seconds)
        steps = record.completion_tokens / max(1, len(record.finish_reasons)) - 1
        if steps > 0:
            self._per_token.observe((record.seconds - record.first_token) / steps)

    def collect(self) -> Iterator[Metric]:
        """What the engine has counted. The thread that counts is another; each number by itself is right."""
        stats, state = self._engine.stats(), self._engine.state()
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"faquant_{name}", text, value=getattr(stats, name))
        finished = CounterMetricFamily("faquant_answers", "Answers that have ended, by reason", labels=["reason"])
        for reason, count in stats.finished.items():
            finished.add_metric([reason], count)
        yield finished
        for field, (name, text) in _GAUGES.items():
            yield GaugeMetricFamily(f"faquant_{name}", text, value=getattr(state, field))

    def render(self) -> tuple[bytes, str]:
        """The text, and its media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
