"""What a GPU's errors mean, for people."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from triton.runtime.errors import OutOfResources

from ...errors import FaquantError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def explained(error: Exception) -> str | None:
    """What failed on the GPU, and what to do; None: the error is not the GPU's."""
    first = str(error).partition("\n")[0]
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"The GPU has too little memory: {first} Use a smaller kv_cache_memory, max_num_batched_tokens or "
            "max_num_seqs, or a GPU with more memory."
        )
    if isinstance(error, OutOfResources):
        return f"A kernel does not fit this GPU: {first}. `faquant doctor` tests all kernels; --device cpu works."
    # torch reports failures of the driver as this, and older versions as a RuntimeError.
    if isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in first or "CUDA driver" in first:
        return (
            f"The GPU failed: {first}. This process cannot use it any more: start it again. If it fails again, "
            "`faquant doctor` tests the GPU."
        )
    return None


def explains(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a method that takes memory of the GPU raise FaquantError with `explained`'s text."""

    @wraps(method)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            if reason := explained(error):
                raise FaquantError(reason) from error
            raise

    return run
