"""Decode steps as CUDA graphs: a step of a small model has hundreds of short launches, which the CPU would issue more
slowly than the GPU executes them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arrays import Array
from ..pages import Spans
from ..scheme import SPLIT
from .cache import DeviceBatch, DeviceSpans, pinned

MOST_ROWS = 64
"""Steps with more rows run without a graph: their kernels take longer than their launches."""

Step = Callable[[Tensor, DeviceBatch], None]
"""Runs x [rows, hidden] through layers, in place."""


class DecodeGraphs:
    """Runs steps with one token per sequence. There is a graph for each number of rows and of splits, both rounded up
    to a power of two; rows beyond the step's are at position -1, where kernels do nothing.

    Args:
        step: what a graph captures. It must not read anything back from the device.
    """

    def __init__(self, step: Step, page_size: int, device: torch.device) -> None:
        self._step, self._page_size, self._device = step, page_size, device
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def fits(self, spans: Spans) -> bool:
        """Whether `run` can run these spans."""
        counts = spans.tokens_starts[:, 0]
        return len(counts) <= MOST_ROWS and bool((counts == 1).all())

    def run(self, x: Tensor, tables: tuple[Array, Array], spans: Spans) -> None:
        """Run x [rows, hidden] through the layers, in place; tables [rows, kinds, D] are RoPE's."""
        rows = _power_of_two(len(x))
        splits = _power_of_two(int(spans.tokens_starts[:, 1].max()) // SPLIT + 1)
        if (rows, splits) not in self._graphs:
            shape = rows, splits, x.shape[1], tables[0].shape[1:]
            self._graphs[rows, splits] = _Graph(self._step, *shape, self._page_size, self._device, self._pool)
        self._graphs[rows, splits].run(x, tables, spans)


class _Graph:
    """One captured step, and the memory that it reads its inputs from. In the interpreter the step runs anew."""

    def __init__(
        self,
        step: Step,
        rows: int,
        splits: int,
        hidden: int,
        table: tuple[int, ...],
        page_size: int,
        device: torch.device,
        pool: Any,
    ) -> None:
        self._step, self._page_size, self._device = step, page_size, device
        self._longest = splits * SPLIT - 1
        self._width = -(-splits * SPLIT // page_size)
        self._x = torch.zeros(rows, hidden, device=device)
        self._tables = torch.zeros(2, rows, *table, device=device)
        self._positions = torch.full((rows,), -1, dtype=torch.int32, device=device)
        self._block_tables = torch.zeros(rows, self._width, dtype=torch.int32, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        # Kernels compile and allocate at their first launch, which a graph cannot hold.
        self._run_step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            self._graph = _captured(self._run_step, pool)

    def run(self, x: Tensor, tables: tuple[Array, Array], spans: Spans) -> None:
        rows = len(x)
        positions = np.full(len(self._positions), -1, np.int32)
        positions[:rows] = spans.tokens_starts[:, 1]
        block_tables = spans.block_tables[:, : self._width]
        if not isinstance(block_tables, Tensor):
            block_tables = block_tables.astype(np.int32)
        copies = [
            (self._positions, positions),
            # What else is in these rows is not read.
            (self._block_tables[:rows, : block_tables.shape[1]], block_tables),
            *((mine[:rows], table) for mine, table in zip(self._tables, tables, strict=True)),
        ]
        for mine, given in copies:
            mine.copy_(pinned(given, self._device), non_blocking=True)
        self._x[:rows] = x
        self._x[rows:].zero_()
        if self._graph is None:
            self._run_step()
        else:
            self._graph.replay()
        x.copy_(self._x[:rows])

    def _run_step(self) -> None:
        rows = len(self._x)
        sequences = torch.arange(rows, dtype=torch.int32, device=self._device)
        spans = DeviceSpans(self._positions, sequences, self._block_tables, [1] * rows, [self._longest] * rows)
        cos, sin = self._tables.transpose(1, 2).contiguous()
        self._step(self._x, DeviceBatch(spans, cos, sin, spans.slots(self._page_size)))


def _captured(step: Callable[[], None], pool: Any) -> torch.cuda.CUDAGraph | None:
    """The graph of a step, or None if the GPU's memory does not suffice; then the step is launched anew each time."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # Other threads may wait for the GPU meanwhile, as vLLM's do for sampled tokens.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            step()
    except torch.OutOfMemoryError:
        torch.cuda.set_stream(stream)
        return None
    return graph


def _power_of_two(number: int) -> int:
    """The least power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()
