"""Times of calls on the GPU, from CUDA graphs; and a device copy, the unit of bandwidth."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from faquant.kernels.device import interpreted

from .results import WARM_UP

Input = TypeVar("Input")

ROUNDS = 9
GRAPH_SECONDS, MOST_CALLS = 2e-3, 200
"""A graph holds so many calls that it takes about this long, but no more than these."""
COLD_BYTES = 256 << 20
"""Inputs that are used in turn have at least this size together, so that the L2 cache does not hold them."""
MOST_INPUTS = 64


def device() -> torch.device:
    """The GPU, or the CPU in Triton's interpreter, where times mean nothing."""
    return torch.device("cpu" if interpreted() else "cuda")


def warming_up() -> bool:
    """Whether this process compiles kernels only, and returns no times."""
    return WARM_UP in os.environ


def inputs_for(nbytes: int) -> int:
    """How many inputs of this size must be used in turn."""
    return 1 if warming_up() else 2 if interpreted() else max(1, min(MOST_INPUTS, -(-COLD_BYTES // nbytes)))


def fits(nbytes: float) -> bool:
    """Whether this much memory is free, with some to spare."""
    if interpreted():
        return True
    gc.collect()
    torch.cuda.empty_cache()
    return nbytes < 0.9 * torch.cuda.mem_get_info()[0]


def synchronize() -> None:
    if not interpreted():
        torch.cuda.synchronize()


def is_dead() -> bool:
    """Whether a kernel has failed, for instance by an address out of range, so that this process cannot go on."""
    try:
        synchronize()
    except RuntimeError:  # torch's error for every failure of the driver
        return True
    return False


def seconds(call: Callable[[Input], object], inputs: Sequence[Input], rounds: int = ROUNDS) -> float:
    """The median time of one call, with the inputs in turn. The call must not wait for the GPU."""

    def all_inputs() -> None:
        for each in inputs:
            call(each)

    if interpreted() or warming_up():
        begin = time.perf_counter()
        all_inputs()
        return (time.perf_counter() - begin) / len(inputs)
    all_inputs()  # kernels compile
    all_inputs()
    once = _elapsed(all_inputs)
    repeats = max(1, min(MOST_CALLS // len(inputs), round(GRAPH_SECONDS / once)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            all_inputs()
    graph.replay()
    times = [_elapsed(graph.replay) for _ in range(rounds)]
    return statistics.median(times) / (repeats * len(inputs))


def _elapsed(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def fastest(calls: dict[str, Callable[[Input], object]], inputs: Sequence[Input]) -> tuple[float, str, list[str]]:
    """The time and the name of the fastest call, and why others failed.

    Raises:
        RuntimeError: all failed.
    """
    times: dict[str, float] = {}
    failures: list[str] = []
    for name, call in calls.items():
        try:
            times[name] = seconds(call, inputs)
        except Exception as error:
            failures.append(f"{name}: {reason(error)}")
    if not times:
        raise RuntimeError("; ".join(failures))
    best = min(times, key=lambda name: times[name])
    return times[best], best, failures


def reason(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def copy_rate() -> float:
    """Bytes per second that a copy within the device's memory reads and writes together."""
    size = 1 << 12 if interpreted() or warming_up() else 1 << 30
    while not fits(2 * size):
        size //= 2
    source = torch.ones(size, dtype=torch.int8, device=device())
    target = torch.empty_like(source)
    return 2 * size / seconds(target.copy_, [source])
