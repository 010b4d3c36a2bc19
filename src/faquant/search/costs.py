"""What better linears cost in time: kernels timed on this machine, at the numbers of rows that the user serves."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from time import perf_counter
from typing import Literal

import numpy as np

from ..checkpoint.model_config import ModelConfig
from ..kernels.backend import Linear
from ..kernels.cpu import CpuBackend
from ..kernels.tables import INPUT_STEPS, WIDE_INPUT_STEPS, DynamicTable, FloatTable

Kind = Literal["narrow", "wide", "float"]
"""A linear with inputs of 8 bits, of 16 bits, or left float."""
Seconds = Callable[[tuple[int, int], Sequence[int]], Mapping[tuple[Kind, int], float]]
"""The seconds of a linear with weight [n, k] by kind and number of rows."""

BATCHES = (1, 32)
_LARGEST = 1 << 26
"""Weights of a linear that are timed; the time of larger ones is proportional."""
_ROUNDS, _LEAST_SECONDS = 7, 0.02


class Costs:
    """Costs of linears as a share of the time of all linears with 8-bit inputs, the mean over the batches."""

    def __init__(self, config: ModelConfig, batches: Sequence[int], seconds: Seconds) -> None:
        self._config, self._batches = config, batches
        shapes = sorted({config.linear_shape(name) for name in config.linears})
        self._seconds = {shape: seconds(shape, batches) for shape in shapes}
        self._total = {batch: sum(self._of(name, "narrow", batch) for name in config.linears) for batch in batches}

    def added(self, names: Sequence[str], kind: Kind) -> float:
        """What these linears cost more than with 8-bit inputs."""
        return fmean(
            sum(self._of(name, kind, batch) - self._of(name, "narrow", batch) for name in names) / self._total[batch]
            for batch in self._batches
        )

    def _of(self, name: str, kind: Kind, batch: int) -> float:
        return self._seconds[self._config.linear_shape(name)][kind, batch]


def timed(float_bytes: int) -> Seconds:
    """Times the CPU's kernels, with float weights of 2 or 4 bytes. The kinds take turns, and the least of the times
    counts, so that other processes disturb little."""
    backend = CpuBackend()

    def seconds(shape: tuple[int, int], batches: Sequence[int]) -> Mapping[tuple[Kind, int], float]:
        n, k = shape
        some = min(n, max(1, _LARGEST // k))
        random = np.random.default_rng(0)
        weight = random.integers(-127, 128, (some, k), np.int8)
        scale = np.full(some, 0.01, np.float32)
        stored = weight.astype(np.float32)
        floats = stored if float_bytes == 4 else (stored.view(np.uint32) >> 16).astype(np.uint16)
        linears: dict[Kind, Linear] = {
            "narrow": backend.linear(DynamicTable(weight, scale, input_steps=INPUT_STEPS)),
            "wide": backend.linear(DynamicTable(weight, scale, input_steps=WIDE_INPUT_STEPS)),
            "float": backend.linear(FloatTable(floats)),
        }
        found: dict[tuple[Kind, int], float] = {}
        for batch in batches:
            x = random.standard_normal((batch, k), np.float32)
            for _ in range(_ROUNDS):
                for kind, linear in linears.items():
                    begin = perf_counter()
                    calls = 0
                    while not calls or perf_counter() - begin < _LEAST_SECONDS:
                        linear(x)
                        calls += 1
                    taken = (perf_counter() - begin) / calls * n / some
                    found[kind, batch] = min(found.get((kind, batch), taken), taken)
        return found

    return seconds
