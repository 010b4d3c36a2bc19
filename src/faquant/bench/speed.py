"""Measures the speed of a model without the scheduler: prefill, and decoding at a given depth."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from statistics import median

import numpy as np

from ..checkpoint.model_config import KvCacheDtype
from ..engine.engine import PAGE_SIZE
from ..kernels.arrays import Array, Floats, Integers, to_numpy
from ..model.load import Model
from ..model.paged import Chunk, PagedDecoder
from ..model.rope import Rope

PREFILL_CHUNK = 512
WARM_UP = 2
PAUSE = 0.02
STEPS, STEPS_TOGETHER = 16, 4
"""Decoding steps per repetition, with one sequence and with several."""


def seconds(
    calls: Mapping[str, Callable[[], object]], rounds: int, pause: float = 0.0, warm_up: int = WARM_UP
) -> dict[str, float]:
    """The median time of each call in seconds.

    Every round makes all calls in a random order, because a call's time depends on what the previous one left in the
    CPU's caches. A call can return its own time as a float. The `pause` before each call, in seconds, lets the previous
    call's spinning threads go to sleep.
    """
    names, order = list(calls), Random(0)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + warm_up):
        for name in order.sample(names, len(names)):
            time.sleep(pause)
            begin = time.perf_counter()
            own = calls[name]()
            taken = time.perf_counter() - begin
            if number >= warm_up:
                times[name].append(own if isinstance(own, float) else taken)
    return {name: median(some) for name, some in times.items()}


class Sequences:
    """Sequences of equal length, each with its own pages, that decode together without a scheduler."""

    def __init__(self, model: Model, kv_cache_dtype: KvCacheDtype = "auto") -> None:
        self.model = model
        self.kv_cache_dtype = kv_cache_dtype
        self._rope = Rope(model.config, model.max_position)

    @property
    def cache_bytes(self) -> int:
        """Cache bytes per token."""
        return self.model.cache_bytes_per_token(self.kv_cache_dtype)

    def prefill(self, tokens: Sequence[int]) -> Array:
        """Prefill a prompt into an empty cache; return the logits [1, vocab] of its last token."""
        self._make_pages(len(tokens), 1)
        return self._read(tokens)

    def prepare(self, tokens: Sequence[int], count: int, spare: int = PAGE_SIZE) -> None:
        """Fill each of `count` sequences with the tokens, in its own memory, with space for `spare` more."""
        self._make_pages(len(tokens) + spare, count)
        last = self._read(tokens)
        for table in self._tables[1:]:
            for source, target in zip(self._tables[0].tolist(), table.tolist(), strict=True):
                self._decoder.copy_page(source, target)
        self._depth, self._next = len(tokens), np.repeat(last.argmax(-1), count)

    def prepare_random(self, depth: int, spare: int = PAGE_SIZE) -> None:
        """Fill one sequence with random keys and values, because prefilling a prompt would take too long."""
        self._make_pages(depth + spare, 1)
        heads, dim = self.model.config.num_kv_heads, self.model.config.head_dim
        for start in range(0, depth, PREFILL_CHUNK):
            slots = np.arange(start, min(start + PREFILL_CHUNK, depth))
            k, v = np.random.default_rng(start).standard_normal((2, len(slots), heads, dim), np.float32)
            for pages in self._decoder.pages:
                pages.append(k, v, slots, slots)
        self._depth, self._next = depth, np.zeros(1, np.int64)

    def decode(self, steps: int, count: int | None = None) -> None:
        """Decode `steps` tokens of the first `count` sequences (None: all) greedily, always from the same position."""
        tokens = self._next[:count]
        for step in range(steps):
            tokens = self._logits(tokens[:, None], self._depth + step).argmax(-1)

    def all_logits(self, tokens: Sequence[int]) -> Array:
        """The logits of all tokens of a sequence, [tokens, vocab]."""
        self._make_pages(len(tokens), 1)
        return self._logits(np.array([tokens]), 0)

    def _logits(self, rows: Integers, start: int, last_only: bool = False) -> Floats:
        """The logits of the next tokens, int64 [sequences, n], from position `start` on."""
        chunks = [Chunk(row, start, table, self._rope) for row, table in zip(rows, self._tables, strict=False)]
        hidden = self._decoder.run(chunks)
        # On a GPU, this waits for the result.
        return to_numpy(self._decoder.logits(hidden[-1:] if last_only else hidden))

    def _make_pages(self, length: int, count: int) -> None:
        each = -(-length // PAGE_SIZE)
        pages = self.model.make_pages(count * each, PAGE_SIZE, self.kv_cache_dtype)
        self._decoder = PagedDecoder(self.model.decoder, pages, self.model.backend)
        self._tables = np.arange(count * each).reshape(count, each)

    def _read(self, tokens: Sequence[int]) -> Array:
        for start in range(0, len(tokens), PREFILL_CHUNK):
            last = self._logits(np.array([tokens[start : start + PREFILL_CHUNK]]), start, last_only=True)
        return last


def measure_prefill(systems: Mapping[str, Sequences], tokens: Sequence[int], rounds: int) -> dict[str, float]:
    """Prefilled tokens per second, by system."""
    times = seconds({name: partial(system.prefill, tokens) for name, system in systems.items()}, rounds, PAUSE, 1)
    return {name: len(tokens) / taken for name, taken in times.items()}


def measure_decode(
    systems: Mapping[str, Sequences], tokens: Sequence[int], batches: Sequence[int], rounds: int
) -> dict[int, dict[str, float]]:
    """Decoded tokens per second after `tokens` in the cache, by number of sequences and by system."""
    for system in systems.values():
        system.prepare(tokens, max(batches))
    found = {}
    for count in batches:
        steps = STEPS if count == 1 else STEPS_TOGETHER
        calls = {name: partial(system.decode, steps, count) for name, system in systems.items()}
        found[count] = {name: steps * count / taken for name, taken in seconds(calls, rounds, PAUSE, 1).items()}
    return found
