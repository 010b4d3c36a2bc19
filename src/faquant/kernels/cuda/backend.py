"""The CUDA backend: torch tensors on the GPU and Triton kernels, with the bits of the CPU backend. Only float attention
runs in torch, whose bits may differ."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from ...errors import FaquantError
from ..arrays import Array
from ..backend import Embedding as AnyEmbedding
from ..backend import FusedLayers, Linear, Norm, Pages
from ..device import interpreted
from ..scheme import AttentionScheme
from ..tables import LinearTable
from . import elementwise, modules
from .cache import sent
from .failures import explained, explains
from .float_pages import BFloat16Pages, FloatPages
from .layers import CudaLayers
from .modules import moved_to_device, on_device
from .pages import Int8Pages
from .self_test import self_test

SPARE = 0.1
"""The share of the GPU's memory that a cache of the default size leaves for intermediate results."""


def description(device: torch.device) -> str:
    """The GPU, its memory, and Triton's version."""
    if interpreted():
        return f"Triton {triton.__version__}, interpreted"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory:,} bytes, Triton {triton.__version__}"


@cache
def _check(device: torch.device) -> None:
    """Raises: FaquantError: a kernel cannot run on this GPU, or does not have its bits."""
    try:
        results = self_test(device)
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise explained(error) or FaquantError(f"The GPU's kernels cannot run here: {first}.") from error
    if failed := [name for name, passed in results.items() if not passed]:
        raise FaquantError(
            f"The GPU's kernels failed the self-test ({', '.join(failed)}) on {torch.cuda.get_device_name(device)}. "
            "Please report it with the output of faquant doctor, and use the device cpu."
        )


class CudaBackend:
    """Backend for the current GPU; with Triton's interpreter, for tensors in the CPU's memory.

    Raises:
        FaquantError: the kernels do not pass the self-test on this GPU.
    """

    def __init__(self) -> None:
        if interpreted():
            self.device = torch.device("cpu")
            return
        self.device = torch.device("cuda", torch.cuda.current_device())
        _check(self.device)

    @explains
    def linear(self, table: LinearTable) -> Linear:
        return modules.linear(table, self.device)

    @explains
    def norm(self, weight: Array, eps: float, bias: Array | None = None) -> Norm:
        offset = None if bias is None else on_device(bias, self.device).float()
        return modules.RMSNorm(on_device(weight, self.device).float(), eps, offset)

    @explains
    def embedding(self, weight: Array) -> AnyEmbedding:
        return modules.Embedding(on_device(weight, self.device))

    def rope(self, x: Tensor, cos: Array, sin: Array) -> Tensor:
        return self._rope(x, *(sent(table, self.device) for table in (cos, sin)))

    @moved_to_device
    def _rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return elementwise.rope(x, cos, sin)

    @moved_to_device
    def silu_times(self, gate: Tensor, up: Tensor) -> Tensor:
        return elementwise.silu_times(gate, up)

    @moved_to_device
    def gelu_times(self, gate: Tensor, up: Tensor) -> Tensor:
        return elementwise.gelu_times(gate, up)

    @explains
    def int8_pages(self, scheme: AttentionScheme, num_pages: int, page_size: int, memory: Array | None = None) -> Pages:
        return Int8Pages(scheme, num_pages, page_size, self.device, memory)

    @explains
    def float_pages(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        num_pages: int,
        page_size: int,
        dtype: str = "float32",
        memory: Array | None = None,
    ) -> Pages:
        kind = BFloat16Pages if dtype == "bfloat16" else FloatPages
        return kind(num_heads, num_kv_heads, head_dim, num_pages, page_size, self.device, memory)

    def can_fuse(self, layer: Any, pages: Pages) -> bool:
        return bool(layer.is_int8) and isinstance(pages, Int8Pages)

    @explains
    def fuse(
        self, layers: Sequence[Any], pages: Sequence[Pages], windows: Sequence[int | None], isa: str | None = None
    ) -> FusedLayers:
        return CudaLayers(layers, [each for each in pages if isinstance(each, Int8Pages)], windows, self.device)

    @property
    def description(self) -> str:
        return description(self.device)

    def cache_memory(self) -> int:
        if self.device.type == "cpu":
            return 1 << 30
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return max(0, free - int(SPARE * total))

    def explain(self, error: Exception) -> FaquantError | None:
        return explained(error)
