"""The share of the CPU that other processes take, by the clocks in Linux's /proc."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class CpuTimes:
    """Clock ticks of the CPUs that this process may use, and of this process and its descendants."""

    total: int
    busy: int
    own: int

    @classmethod
    def now(cls) -> "CpuTimes | None":
        """None if the system has no /proc."""
        try:
            lines = (PROC / "stat").read_text().splitlines()
        except OSError:
            return None
        total = busy = 0
        names = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        for line in lines:
            name, *fields = line.split()
            if name in names:
                # Guests' time is also in that of user processes. What a hypervisor steals counts as other processes'.
                user, nice, system, idle, iowait, irq, softirq, steal = map(int, fields[:8])
                working = user + nice + system + irq + softirq + steal
                busy += working
                total += working + idle + iowait
        return cls(total, busy, own_ticks(os.getpid()))


def own_ticks(root: int) -> int:
    """User and system time of a process, its descendants, and the ended ones that these have waited for."""
    parents, ticks = {}, {}
    for path in PROC.glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may contain anything.
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        process = int(path.parent.name)
        parents[process], ticks[process] = int(fields[1]), sum(map(int, fields[11:15]))

    def is_ours(process: int) -> bool:
        while process != root and process in parents:
            process = parents[process]
        return process == root

    return sum(ticks[process] for process in ticks if is_ours(process))


def share_of_others(begin: CpuTimes | None, end: CpuTimes | None) -> float:
    """The share of the CPUs' time that went to other processes in between, from 0 to 1; NaN if unknown."""
    if begin is None or end is None or end.total == begin.total:
        return math.nan
    return max(0.0, (end.busy - begin.busy) - (end.own - begin.own)) / (end.total - begin.total)
