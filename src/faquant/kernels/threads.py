"""How many threads the kernels use: as many as torch has, unless torch is held to one.

torch's threads go on waiting actively for a moment when they are done, on cores that the kernels' threads then want. A
decode step has next to nothing for torch to do, and took two to three times as long with both.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_kernels: int | None = None


def count() -> int:
    """Threads for a kernel."""
    return torch.get_num_threads() if _kernels is None else _kernels


@contextmanager
def torch_on_one() -> Iterator[None]:
    """Hold torch to one thread, and leave the kernels theirs."""
    global _kernels  # as torch's own number, it holds for the process
    if _kernels is not None:
        yield
        return
    _kernels = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(_kernels)
        _kernels = None
