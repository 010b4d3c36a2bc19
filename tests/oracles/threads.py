"""The number of threads of torch and of the kernels."""

import torch

from faquant.kernels import threads


def set_threads(count: int) -> None:
    """Set the number of threads of both."""
    torch.set_num_threads(count)
    threads.set_count(count)
