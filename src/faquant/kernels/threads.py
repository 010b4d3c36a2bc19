"""How many threads the kernels use: as set by `set_count` or OMP_NUM_THREADS, else one per core."""

import os
from contextlib import suppress
from pathlib import Path

from . import _C

ALL_THREADS = 0
"""Pass this to a kernel to use `count()` threads."""


def count() -> int:
    """Number of threads of a kernel."""
    return _count


def set_count(threads: int | None) -> None:
    """Set the number of threads; None: the default.

    Raises:
        ValueError: threads is not positive.
    """
    global _count
    if threads is not None and threads < 1:
        raise ValueError(f"the kernels need at least one thread, not {threads}")
    _count = threads or _default()
    _C.set_threads(_count)


def _default() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(asked) if asked.isdigit() and int(asked) > 0 else _cores()


def _cores() -> int:
    """Cores that this process may run on. Hyperthreads of a core count once, because they share its multipliers."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    cores = set()
    for cpu in cpus:
        siblings = str(cpu)
        with suppress(OSError):
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        cores.add(siblings)
    return max(1, min(len(cores), _quota()))


def _quota() -> int:
    """Whole CPUs within the container's limit."""
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            return max(1, -(-int(quota) // int(period)))
    return 1 << 20


_count = 1
set_count(None)
