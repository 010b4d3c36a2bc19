"""The measurements of end_to_end.py: faquant beside one peer after another, row by row."""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from peers.client import PeerError
from systems import Ours, System
from timing import Streams, quiet_seconds, seconds, shown_share

from faquant.bench.speed import STEPS, STEPS_TOGETHER
from faquant.checkpoint.model_config import ModelConfig

PAUSE, ROW_SECONDS, MOST_ROUNDS = 0.05, 6.0, 9
"""A row has as many rounds as fit into the time, at least one and at most nine."""
MEMORY_SHARE = 0.8
"""The caches of both systems may take this share of the memory that is available."""
OURS = "faquant"
PEERS = {
    "llama.cpp f16": ("llama_cpp", "f16", 2.0),
    "llama.cpp q8_0": ("llama_cpp", "q8_0", 34 / 32),
    "OpenVINO f16": ("openvino", "f16", 2.0),
    "OpenVINO u8": ("openvino", "u8", 34 / 32),
}
"""Worker, type of the KV cache and its bytes per value, approximately; the weights are Q8_0."""


@dataclass(frozen=True)
class Work:
    """A prompt to prefill if there are no sequences, otherwise sequences that decode at a depth."""

    length: int
    sequences: int = 0

    def __str__(self) -> str:
        if not self.sequences:
            return f"prefill of {self.length:,}"
        return f"decode at depth {self.length:,}, {self.sequences} sequence{'s' * (self.sequences > 1)}"


@dataclass(frozen=True)
class Measurement:
    """Tokens per second of faquant and of a peer (None: faquant alone), and bytes per second by kind of page."""

    work: Work
    peer: str | None
    huge_pages: bool
    rates: Mapping[str, float]
    memory_rates: Mapping[str, float]
    others: float

    @property
    def ratio(self) -> float:
        """How many times as fast as the peer faquant is."""
        return self.rates[OURS] / self.rates[self.peer] if self.peer else float("inf")


class Bench:
    """faquant, a text, and what has been measured."""

    def __init__(self, ours: Ours, text: list[int], arguments: argparse.Namespace) -> None:
        self.ours = ours
        self.text = text
        self.patience = arguments.patience
        self.works = [Work(length) for length in sorted(arguments.prompts)]
        self.works += [
            Work(depth, count) for depth in sorted(arguments.depths) for count in sorted(arguments.sequences)
        ]
        self.measurements: list[Measurement] = []
        self.failures: list[dict[str, object]] = []
        self._threads = arguments.threads
        self._streams = Streams(arguments.threads)
        self._memory = available_memory()

    def run(self, name: str | None, system: System | None, huge_pages: bool) -> None:
        """Measure faquant beside a peer, or alone in the rows in which no peer has been measured."""
        ends: list[tuple[Work, str]] = []
        works = self.works
        if system is None:
            measured = {one.work for one in self.measurements}
            works = [work for work in works if work not in measured]
        fitting = [work for work in works if self._fits(work, name)]
        depth = None
        for work in works:
            reasons = [
                reason for one, reason in ends if one.length <= work.length and one.sequences <= max(1, work.sequences)
            ]
            if work not in fitting:
                reasons = ["the caches do not fit into memory"]
            if not reasons:
                if work.sequences and work.length != depth:
                    depth = work.length
                    most = max(one.sequences for one in fitting if one.length == depth)
                    self.ours.prepare(self.text[:depth], most)
                try:
                    if (taken := self._measure(work, name, system, huge_pages)) > self.patience:
                        ends.append((work, f"reading the prompts of {work} took {taken:.0f} s"))
                except PeerError as error:
                    ends.append((work, f"{work}: {error}"))
                    reasons = [str(error)]
            if reasons:
                print(f"{work}, {name or OURS}: skipped: {reasons[0]}", flush=True)
                self.failures.append({**asdict(work), "peer": name, "huge_pages": huge_pages, "failure": reasons[0]})

    def _fits(self, work: Work, name: str | None) -> bool:
        config = self.ours.config
        values = 2 * config.num_layers * config.num_kv_heads * config.head_dim
        each = self.ours.cache_bytes + (values * PEERS[name][2] if name in PEERS else 0)
        return work.sequences * work.length * each <= MEMORY_SHARE * self._memory

    def _measure(self, work: Work, name: str | None, system: System | None, huge_pages: bool) -> float:
        """Measure a row; returns the seconds that the peer needs for reading its prompts."""
        tokens, prepare, reading = self.text[: work.length], None, 0.0
        calls: dict[str, Callable[[], object]] = {}
        if not work.sequences:
            count = work.length
            calls[OURS] = partial(self.ours.prefill, tokens)
            if name is not None and system is not None:
                calls[name] = partial(system.prefill, tokens)
        else:
            steps = STEPS if work.sequences == 1 else STEPS_TOGETHER
            count = steps * work.sequences
            calls[OURS] = partial(self.ours.decode, steps, work.sequences)
            if name is not None and system is not None:
                calls[name] = partial(system.decode, steps)
                prepare = partial(system.prepare, tokens, work.sequences)
                reading = seconds({"": prepare}, 1, 0, 0)[""]
        calls |= self._streams.calls
        once = seconds(calls, 1, PAUSE, 0)
        if name is not None and not work.sequences:
            reading = once[name]
        rounds = min(MOST_ROUNDS, max(1, int(ROW_SECONDS / sum(once.values()))))
        times, others = quiet_seconds(calls, rounds, PAUSE, 0, prepare)
        memory_rates = self._streams.take_rates(times)
        one = Measurement(
            work, name, huge_pages, {some: count / taken for some, taken in times.items()}, memory_rates, others
        )
        self.measurements.append(one)
        shown = ", ".join(f"{some} {rate:,.1f}" for some, rate in one.rates.items())
        gigabytes = " and ".join(f"{rate / 1e9:.1f}" for rate in memory_rates.values())
        print(
            f"{work}: {shown}{' (huge pages)' * huge_pages} tokens/s; memory {gigabytes} GB/s; "
            f"others {shown_share(others)}",
            flush=True,
        )
        return reading


def available_memory() -> int:
    """Bytes of memory that processes can still get; unlimited if the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return sys.maxsize
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def weight_bytes(config: ModelConfig) -> int:
    """Bytes of the matrices that a step reads, one per element."""
    kept = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim * config.hidden_size
    layer = kept + 3 * config.hidden_size * config.intermediate_size
    return config.num_layers * layer + config.vocab_size * config.hidden_size
