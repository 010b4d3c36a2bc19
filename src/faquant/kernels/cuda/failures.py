"""What a GPU's errors mean, for people."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from triton.runtime.errors import OutOfResources

from ...errors import DeviceError, FaquantError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def explained(error: Exception) -> FaquantError | None:
    """What failed on the GPU, and what to do, in one paragraph; None: the error is not the GPU's."""
    first = str(error).partition("\n")[0]
    from_triton = "Triton Error [CUDA]" in first
    if isinstance(error, torch.OutOfMemoryError) or (from_triton and "out of memory" in first):
        return FaquantError(
            f"The GPU has too little memory: {first} Use a smaller kv_cache_memory, max_num_batched_tokens or "
            "max_num_seqs, or a GPU with more memory."
        )
    if "Failed to find C compiler" in first:
        return FaquantError("Triton needs a C compiler and Python's headers to launch kernels: gcc and python3-dev.")
    if isinstance(error, OutOfResources):
        return FaquantError(f"A kernel does not fit this GPU: {first}. `faquant doctor` tests all kernels.")
    # torch reports failures of the driver as this, and older versions as a RuntimeError.
    is_failure = isinstance(error, getattr(torch, "AcceleratorError", ()))
    if is_failure or from_triton or "CUDA error" in first or "CUDA driver" in first:
        return DeviceError(
            f"The GPU failed: {first}. This process cannot use it any more: start it again. If it fails again, "
            "`faquant doctor` tests the GPU."
        )
    return None


def explains(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a method that uses the GPU raise FaquantError with `explained`'s text."""

    @wraps(method)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            if told := explained(error):
                raise told from error
            raise

    return run
