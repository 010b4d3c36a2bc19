"""The number of threads of torch and of the kernels."""

import torch

from faquant.kernels import threads


def set_threads(count: int) -> None:
    """Let both use so many."""
    torch.set_num_threads(count)
    threads.set_count(count)
