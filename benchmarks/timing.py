"""Timing several calls beside each other on a shared machine."""

import time
from collections.abc import Callable, Mapping
from statistics import median

WARM_UP = 2


def seconds(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median time of each; every round makes all calls, each time in another order, so that none always comes behind
    the same one."""
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + WARM_UP):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            begin = time.perf_counter()
            calls[name]()
            if number >= WARM_UP:
                times[name].append(time.perf_counter() - begin)
    return {name: median(some) for name, some in times.items()}
