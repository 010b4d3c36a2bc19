"""The backend protocol, which runs a model, and a registry of its implementations.

A backend makes linears, norms, embeddings and cache pages from plain tables, and runs layers. It chooses the array
library: NumPy on CPUs; torch on GPUs, and for float models that must reproduce the rounding of other tools.
"""

import logging
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol, cast

from ..errors import FaquantError
from .arrays import Array, Integers
from .device import chosen
from .pages import Spans
from .saturation import Saturation
from .scheme import AttentionScheme
from .tables import LinearTable


class Linear(Protocol):
    """y = x · Wᵀ + b: [tokens, k] → [tokens, n]."""

    is_int8: bool

    def __call__(self, x: Array) -> Array: ...

    @property
    def nbytes(self) -> int:
        """Total size of its arrays in bytes."""


class Norm(Protocol):
    """x / rms(x) · weight (+ bias) over the last dimension."""

    def __call__(self, x: Array) -> Array: ...


class _NoNorm:
    """x itself, where a family has no norm."""

    kernel = None

    def __call__(self, x: Array) -> Array:
        return x


NO_NORM = _NoNorm()


class Embedding(Protocol):
    """Rows of [vocab, hidden]."""

    def __getitem__(self, tokens: Integers) -> Array: ...


class Pages(Protocol):
    """The cache of one layer, as its attention uses it, for any data type."""

    page_size: int
    num_pages: int
    is_packed: bool
    """Whether the fused layers can use it."""

    @property
    def saturation(self) -> Saturation:
        """Counts so far of the values of k, v and q beyond their calibrated ranges."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes per token in this layer."""

    def append(self, k: Array, v: Array, slots: Integers, positions: Integers) -> None:
        """Store k and v, float32 [tokens, Hkv, D] after RoPE, in the slots, int64 [tokens]; `positions`, int64
        [tokens], are the tokens' positions in their sequences."""

    def attend(self, q: Array, spans: Spans, window: int | None = None) -> Array:
        """Causal attention of the spans' tokens over their sequences; q is float32 [tokens, Hq, D] after RoPE. Returns
        float32 [tokens, Hq, D]."""

    def copy_page(self, source: int, target: int) -> None:
        """Make page `target` an exact copy of page `source`."""

    def read(self, block_table: Array, length: int) -> tuple[Array, Array]:
        """K and V of the first `length` tokens as float32 [length, Hkv, D], for evaluation."""


class FusedLayers(Protocol):
    """Consecutive layers that run in one call."""

    def run(self, x: Array, tables: tuple[Array, Array], spans: Spans) -> None:
        """Append the spans' tokens to the layers' caches and run x [tokens, hidden] through the layers, in place. The
        tables are [tokens, kinds of RoPE, D]."""


class Backend(Protocol):
    """Makes the parts of a decoder and runs them."""

    @property
    def description(self) -> str:
        """The processor and its kernels, for people."""

    def linear(self, table: LinearTable) -> Linear:
        """A linear with these weights."""

    def norm(self, weight: Array, eps: float, bias: Array | None = None) -> Norm:
        """A norm with weight and bias [size]."""

    def embedding(self, weight: Array) -> Embedding:
        """An embedding with weight [vocab, hidden]."""

    def rope(self, x: Array, cos: Array, sin: Array) -> Array:
        """x [tokens, heads, D] with channel pairs (i, i + D/2) rotated by tables [tokens, 1, D]; may overwrite x."""

    def silu_times(self, gate: Array, up: Array) -> Array:
        """silu(gate) · up, [tokens, n] each."""

    def gelu_times(self, gate: Array, up: Array) -> Array:
        """gelu(gate) · up, [tokens, n] each; gelu in its approximation by tanh."""

    def int8_pages(self, scheme: AttentionScheme, num_pages: int, page_size: int, memory: Array | None = None) -> Pages:
        """Empty pages for a layer with int8 attention; in this memory of the caller's, uint8
        [num_pages, bytes_per_token · page_size], if it is given."""

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
        """Empty pages in float32 or bfloat16. Memory as for int8_pages."""

    def can_fuse(self, layer: Any, pages: Pages) -> bool:
        """Whether a DecoderLayer and its cache can be fused with others."""

    def fuse(
        self, layers: Sequence[Any], pages: Sequence[Pages], windows: Sequence[int | None], isa: str | None = None
    ) -> FusedLayers:
        """Fuse DecoderLayers that `can_fuse` into one call, which returns the same bits as running them step by
        step."""

    def cache_memory(self) -> int:
        """Bytes that a cache may take if nothing else is said."""

    def explain(self, error: Exception) -> FaquantError | None:
        """What failed on the device, and what to do; None: the error is not the device's."""


BACKENDS = {
    "cpu": ".cpu:CpuBackend",
    "cuda": ".cuda.backend:CudaBackend",
    "torch": ".torch_backend:TorchBackend",
}
"""Module and class by name. Each module is imported on first use."""


def make_backend(name: str, **options: Any) -> Backend:
    """Create the backend with this name.

    Raises:
        KeyError: the name is unknown.
    """
    module, _, kind = BACKENDS[name].partition(":")
    return cast(Backend, getattr(import_module(module, __package__), kind)(**options))


def backend_for(device: str) -> Backend:
    """The backend that serves on this device: `auto`, `cpu` or `cuda`. A GPU's kernels pass the self-test first; if one
    fails, `auto` is the CPU, with a warning.

    Raises:
        UsageError: `cuda` was asked for, and cannot be used.
        FaquantError: it failed its self-test.
    """
    name = chosen(device)
    try:
        return make_backend(name)
    except FaquantError as error:
        if device != "auto":
            raise
        logging.getLogger(__name__).warning("%s The CPU is used.", error)
        return make_backend("cpu")
