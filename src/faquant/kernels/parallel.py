"""Torch on all cores, with results that do not depend on their number.

torch's own threads cut a sum differently for each number of threads, and wait for one another after every operation. So
calibration and evaluation run torch on one thread, and run independent pieces of the work side by side. How the work is
cut into pieces depends on its size only.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from . import threads

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Operations of torch use one thread, also those of threads that are started meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def map_in_order(work: Callable[[Item], Result], items: Sequence[Item], at_once: int | None = None) -> list[Result]:
    """The results of `work` for each item, in order. Up to `threads.count()` items are worked on at once, and no more
    than `at_once`, with one thread of torch each. `work` must not call `map_in_order`.

    Raises:
        The first exception in the order of the items; items that have not been started are then dropped.
    """
    inference = torch.is_inference_mode_enabled()

    def alone(item: Item) -> Result:
        with torch.inference_mode(inference):
            return work(item)

    workers = min(threads.count(), len(items), at_once or len(items))
    with one_torch_thread():
        if workers < 2:
            return [work(item) for item in items]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(alone, items))


def blocks(stop: int, size: int, start: int = 0) -> list[slice]:
    """The numbers from `start` to `stop`, such as rows, in slices of `size`; the last one may be shorter."""
    return [slice(begin, min(begin + size, stop)) for begin in range(start, stop, size)]
