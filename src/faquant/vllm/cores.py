"""The CPU cores of one of vLLM's workers."""

import os
import re

import torch

from ..kernels import threads

_BOUND = {
    "GOMP_CPU_AFFINITY": r"(\d+(?: \d+)*)",
    "KMP_AFFINITY": r"granularity=fine,explicit,proclist=\[(\d+(?:,\d+)*)\]",
    "OMP_PLACES": r"\{(\d+(?:,\d+)*)\}",
}
"""Where and how vLLM tells a worker's OpenMP which cores are its own (utils/ompmultiprocessing.py). A user's own value
may list them otherwise, as ranges or as several places: it is left to OpenMP."""


def use_cores(workers: int) -> None:
    """Let the kernels use this worker's cores: those that vLLM has bound OpenMP to, or else its share of all cores of
    the machine, on which there are `workers` workers. OMP_NUM_THREADS, if it is set, is the number of threads."""
    # OpenMP's threads spin after each of torch's small operations, on cores that the kernels need. vLLM's worker has
    # replaced torch.set_num_threads by a function that does nothing.
    torch._C.set_num_threads(1)
    cores = bound_cores()
    if cores:
        # OpenMP has bound this thread to the first core, and the kernels' threads would inherit that.
        os.sched_setaffinity(0, cores)
    elif "OMP_NUM_THREADS" not in os.environ:
        threads.set_count(None)
        threads.set_count(max(1, threads.count() // workers))


def bound_cores() -> set[int]:
    """The cores that vLLM has chosen; empty if it has not."""
    for name, pattern in _BOUND.items():
        found = re.fullmatch(pattern, os.environ.get(name, ""))
        if found:
            return {int(core) for core in re.split("[ ,]", found[1])}
    return set()
