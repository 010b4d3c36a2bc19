"""Shared code of the benchmarks: interleaved timing on a shared machine, memory bandwidth, and the command line."""

import argparse
import json
import mmap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cpu_share import CpuTimes, share_of_others

from faquant.bench.speed import WARM_UP as WARM_UP
from faquant.bench.speed import seconds as seconds
from faquant.kernels import _C, memory, threads
from faquant.kernels import isa as cpu

MOST_TAKEN, TRIES = 0.05, 4
"""A row is measured again, up to this number of times, if other processes took a greater share of the CPU."""
STREAM_BYTES = 512 << 20
SMALL, HUGE = "small pages", "huge pages"


def quiet_seconds(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    pause: float = 0.0,
    warm_up: int = WARM_UP,
    prepare: Callable[[], object] | None = None,
) -> tuple[dict[str, float], float]:
    """As `seconds`; and the share of the CPU that other processes took meanwhile.

    If the share is too high, this calls `prepare` and measures again, and returns the quietest try.
    """
    tries: list[tuple[float, dict[str, float]]] = []
    while not tries or (tries[-1][0] > MOST_TAKEN and len(tries) < TRIES):
        if tries and prepare is not None:
            prepare()
        begin = CpuTimes.now()
        times = seconds(calls, rounds, pause, warm_up)
        tries.append((share_of_others(begin, CpuTimes.now()), times))
    taken, times = min(tries, key=lambda one: one[0])
    return times, taken


def shown_share(taken: float) -> str:
    """The share of the CPU that other processes took, with a mark if it is too high."""
    return f"{taken:.2f}" + ("!" if taken > MOST_TAKEN else "")


class Streams:
    """Reads 512 MiB from end to end, in small pages and in huge ones: the bandwidth of memory."""

    def __init__(self, threads: int) -> None:
        region = mmap.mmap(-1, STREAM_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            region.madvise(mmap.MADV_NOHUGEPAGE)
        self.calls: dict[str, Callable[[], object]] = {}
        for name, store in ((SMALL, np.frombuffer(region, np.int64)), (HUGE, memory.huge(STREAM_BYTES).view(np.int64))):
            store[:] = 1
            self.calls[name] = partial(_C.read_all, store, threads=threads)

    def take_rates(self, times: dict[str, float]) -> dict[str, float]:
        """Remove the streams' times; returns the bandwidths in bytes per second, by kind of page."""
        return {name: STREAM_BYTES / times.pop(name) for name in self.calls}


def start(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, with --threads and --json added, and print the configuration."""
    parser.add_argument("--threads", type=int, default=threads.count())
    parser.add_argument("--json", type=Path, help="also write the rows to this file, with times in seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    threads.set_count(arguments.threads)
    torch.manual_seed(0)
    print(f"{cpu.cpu_name()}, {cpu.selected_isa()}, {arguments.threads} threads")
    return arguments


def finish(arguments: argparse.Namespace, rows: list[dict[str, object]], **more: object) -> None:
    """Write the rows and further results to the file given on the command line."""
    if arguments.json is not None:
        machine = {"cpu": cpu.cpu_name(), "isa": cpu.selected_isa(), "threads": arguments.threads}
        arguments.json.write_text(json.dumps({**machine, **more, "rows": rows}, indent=2) + "\n", encoding="utf-8")
