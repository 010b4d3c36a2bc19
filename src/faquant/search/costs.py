"""What better linears cost in time: kernels timed on this machine, at the numbers of rows that the user serves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from time import perf_counter
from typing import Literal

import numpy as np

from ..checkpoint.model_config import ModelConfig
from ..kernels.cpu import CpuBackend
from ..kernels.tables import ASYMMETRIC_INPUT_STEPS, WIDE_INPUT_STEPS, DynamicTable, FloatTable, LinearTable

Kind = Literal["narrow", "wide", "float"]
"""A linear with inputs of 8 bits, of 16 bits, or left float."""
Seconds = Callable[[tuple[int, int], Sequence[int]], Mapping[tuple[Kind, int], float]]
"""The seconds of a linear with weight [n, k] by kind and number of rows."""

BATCHES = (1, 32)
_LARGEST = 1 << 26
"""Weights of a linear that are timed; the time of larger ones is proportional."""
_MOST_ROWS = 2048
"""Rows that are timed; the time of more is proportional."""
_COLD_BYTES, _ROUNDS = 96 << 20, 5
"""Weights that are read before one is read again, so that they come from memory as in a model, and not from a cache."""


@dataclass(frozen=True)
class Timing:
    """The seconds of a linear with weight [outputs, inputs] for `batch` rows."""

    outputs: int
    inputs: int
    kind: Kind
    batch: int
    seconds: float


def timings(config: ModelConfig, batches: Sequence[int], seconds: Seconds) -> list[Timing]:
    """The times of all shapes of the model's linears."""
    shapes = sorted({config.linear_shape(name) for name in config.linears})
    return [
        Timing(*shape, kind, batch, taken)
        for shape in shapes
        for (kind, batch), taken in seconds(shape, batches).items()
    ]


class Costs:
    """Costs of linears as a share of the time of all linears with 8-bit inputs, the mean over the batches."""

    def __init__(self, config: ModelConfig, batches: Sequence[int], timings: Sequence[Timing]) -> None:
        self._config, self._batches = config, batches
        self._seconds = {(each.outputs, each.inputs, each.kind, each.batch): each.seconds for each in timings}
        self._total = {batch: sum(self._of(name, "narrow", batch) for name in config.linears) for batch in batches}

    def added(self, names: Sequence[str], kind: Kind) -> float:
        """What these linears cost more than with 8-bit inputs."""
        return fmean(
            sum(self._of(name, kind, batch) - self._of(name, "narrow", batch) for name in names) / self._total[batch]
            for batch in self._batches
        )

    def _of(self, name: str, kind: Kind, batch: int) -> float:
        outputs, inputs = self._config.linear_shape(name)
        return self._seconds[outputs, inputs, kind, batch]


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
        tables: dict[Kind, LinearTable] = {
            "narrow": DynamicTable(weight, scale, input_steps=ASYMMETRIC_INPUT_STEPS),
            "wide": DynamicTable(weight, scale, input_steps=WIDE_INPUT_STEPS),
            "float": FloatTable(floats),
        }
        copies = {kind: [backend.linear(table)] for kind, table in tables.items()}
        for kind, linears in copies.items():
            linears += [backend.linear(tables[kind]) for _ in range(_COLD_BYTES // linears[0].nbytes)]
        found: dict[tuple[Kind, int], float] = {}
        for batch in batches:
            rows = min(batch, _MOST_ROWS)
            x = random.standard_normal((rows, k), np.float32)
            for _ in range(_ROUNDS):
                for kind, linears in copies.items():
                    begin = perf_counter()
                    for linear in linears:
                        linear(x)
                    taken = (perf_counter() - begin) / len(linears) * n / some * batch / rows
                    found[kind, batch] = min(found.get((kind, batch), taken), taken)
        return found

    return seconds
