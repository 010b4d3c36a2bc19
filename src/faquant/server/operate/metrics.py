"""Metrics for Prometheus: the engine's counters, read when Prometheus asks, and the times of requests."""

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
    "step_seconds": "Seconds spent in steps",
    "model_seconds": "Seconds spent in the model",
    "prompt_tokens": "Tokens of prompts, counted once per prompt",
    "cached_tokens": "Tokens of prompts found in the prefix cache, counted once per prompt",
    "prefilled_tokens": "Tokens computed for prompts, including recomputation",
    "generated_tokens": "Tokens of answers, counted when the engine returns them",
    "discarded_tokens": "Tokens that were drawn but not sent, because the answer lacked the required form or was ended",
    "draft_tokens": "Draft tokens proposed by speculation",
    "accepted_tokens": "Draft tokens accepted",
    "invalid_answers": "Answers without the required form, drawn again or failed",
    "preemptions": "Sequences preempted in favor of older ones",
}
_GAUGES = {
    "running": ("sequences_running", "Running sequences"),
    "waiting": ("sequences_waiting", "Waiting sequences"),
    "used_pages": ("cache_pages_used", "Cache pages held by sequences"),
    "cached_pages": ("cache_pages_idle", "Cache pages held only by the prefix cache"),
    "num_pages": ("cache_pages", "Cache pages in total"),
    "page_size": ("cache_page_tokens", "Tokens per cache page"),
    "cache_bytes": ("cache_bytes", "Size of the cache in bytes"),
}


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self, engine: Engine, name: str, version: str) -> None:
        self._engine = engine
        self._registry = CollectorRegistry()
        info = Info("faquant", "The served model and the server's settings", registry=self._registry)
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
            "Time from a request to its first token",
            buckets=_FIRST_TOKEN,
            registry=self._registry,
        )
        self._per_token = Histogram(
            "faquant_per_token_seconds",
            "Mean time between the tokens of a request",
            buckets=_PER_TOKEN,
            registry=self._registry,
        )
        self._seconds = Histogram(
            "faquant_request_seconds", "Time of successful requests", buckets=_REQUEST, registry=self._registry
        )
        self._registry.register(self)

    def observe(self, record: Record, route: str) -> None:
        """Record a finished request; `route` is the path template of its endpoint."""
        self._requests.labels(record.method, route, record.status).inc()
        if record.first_token is None:
            return
        self._first_token.observe(record.first_token)
        if record.status != 200:
            return
        self._seconds.observe(record.seconds)
        if record.is_withheld:
            return
        steps = record.completion_tokens / max(1, len(record.finish_reasons)) - 1
        if steps > 0:
            self._per_token.observe((record.seconds - record.first_token) / steps)

    def collect(self) -> Iterator[Metric]:
        """The engine's counters. Another thread updates them; each number is consistent on its own."""
        stats, state = self._engine.stats(), self._engine.state()
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"faquant_{name}", text, value=getattr(stats, name))
        finished = CounterMetricFamily("faquant_answers", "Finished answers by reason", labels=["reason"])
        for reason, count in stats.finished.items():
            finished.add_metric([reason], count)
        yield finished
        for field, (name, text) in _GAUGES.items():
            yield GaugeMetricFamily(f"faquant_{name}", text, value=getattr(state, field))

    def render(self) -> tuple[bytes, str]:
        """The metrics as text, and the media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
