"""The choice of a device: the CPU, or an NVIDIA GPU that the kernels can run on."""

import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from ..errors import UsageError

Device = Literal["auto", "cpu", "cuda"]

LEAST_CAPABILITY = 8, 0
"""Ampere: older GPUs lack the matrix instructions that the kernels need."""
LEAST_TRITON = 3, 6
EXTRA = "pip install 'faquant[cuda]'"
_DRIVER_FILES = "/proc/driver/nvidia/version", "/dev/dxg"
"""One of them is there if Linux, or Linux in Windows, has NVIDIA's driver."""


def interpreted() -> bool:
    """Whether Triton interprets kernels, so that they run without a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def has_driver() -> bool:
    """Whether NVIDIA's driver is there, without importing torch."""
    return any(Path(name).exists() for name in _DRIVER_FILES)


def driver_version() -> str:
    """The driver's version, or `unknown`."""
    try:
        first = Path(_DRIVER_FILES[0]).read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        return "unknown"
    return next((word for word in first.split() if word[0].isdigit() and "." in word), "unknown")


def missing_packages() -> list[str]:
    """The packages of the extra `cuda` that are not installed."""
    return [name for name in ("torch", "triton") if find_spec(name) is None]


def why_not() -> str | None:
    """Why kernels cannot run on a GPU here, as a sentence; None: they can. Imports torch only if there is a driver."""
    if interpreted():
        return None
    if not has_driver():
        return "There is no NVIDIA GPU here: its driver was not found."
    if missing := missing_packages():
        return f"The GPU needs {' and '.join(missing)}: {EXTRA}."
    triton = version("triton")
    if tuple(int(part) for part in triton.split(".")[:2] if part.isdecimal()) < LEAST_TRITON:
        return f"The GPU needs Triton {'.'.join(map(str, LEAST_TRITON))} or newer, not {triton}: {EXTRA}."
    import torch

    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} finds no GPU. It must be a build with CUDA, of a version that the driver "
            "supports."
        )
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        return (
            f"{torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]}, but the kernels "
            "need 8.0 (Ampere, 2020) or newer."
        )
    return None


def chosen(device: str) -> str:
    """`cpu` or `cuda` for `auto`, `cpu` or `cuda`; `auto` is the GPU if kernels can run there.

    Raises:
        UsageError: `cuda` was asked for, and cannot be used; or the name is unknown.
    """
    if device not in get_args(Device):
        raise UsageError(f"device must be one of {', '.join(get_args(Device))}, not {device!r:.80}.")
    if device == "auto":
        return "cpu" if interpreted() or why_not() else "cuda"
    if device == "cuda" and (reason := why_not()):
        raise UsageError(f"{reason} Use the device cpu.")
    return device
