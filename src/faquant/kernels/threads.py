"""How many threads the kernels use: as many as torch has, unless torch is held to one.

torch's threads go on waiting actively for a moment when they are done, on cores that the kernels' threads then want. A
decode step has next to nothing for torch to do, and took two to three times as long with both.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_held = 0
_kernels = 0
"""Threads for the kernels while _held > 0."""


def count() -> int:
    """Threads for a kernel."""
    return _kernels if _held else torch.get_num_threads()


@contextmanager
def torch_on_one() -> Iterator[None]:
    """Hold torch to one thread in this thread, and leave the kernels theirs. Not to be nested."""
    global _held, _kernels
    with _lock:
        # Torch's number is one for each thread, but new threads begin with what was set last anywhere: only what was
        # there before the first of us is to be trusted.
        if _held == 0:
            _kernels = torch.get_num_threads()
        _held += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _held -= 1
            torch.set_num_threads(_kernels)
