"""What runs a model: one protocol, and a small table of those that implement it.

A backend makes linears, norms, embeddings and cache pages from plain tables, and runs layers. Its arrays are its own:
NumPy's on CPUs, torch's for float models that other tools' roundings are to be repeated of.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol, cast

from .arrays import Array, Integers
from .pages import Spans
from .saturation import Saturation
from .scheme import AttentionScheme
from .tables import LinearTable


class Linear(Protocol):
    """y = x · Wᵀ + b on [tokens, k], giving [tokens, n]."""

    is_int8: bool

    def __call__(self, x: Array) -> Array: ...

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""


class Norm(Protocol):
    """x / rms(x) · weight (+ bias) over the last dimension."""

    def __call__(self, x: Array) -> Array: ...


class Embedding(Protocol):
    """Rows of [vocab, hidden]."""

    def __getitem__(self, tokens: Integers) -> Array: ...


class Pages(Protocol):
    """What a layer's attention needs of its cache, whatever it holds."""

    page_size: int
    num_pages: int
    saturation: Saturation
    """What was appended and asked beyond the calibrated ranges."""
    is_packed: bool
    """Whether the layers' own kernels can work on it."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes in this layer."""

    def append(self, k: Array, v: Array, slots: Integers, positions: Integers) -> None:
        """Store k and v, float32 [tokens, Hkv, D] after RoPE, in the slots, int64 [tokens]; `positions`, int64
        [tokens], says which number each token has in its sequence."""

    def attend(self, q: Array, spans: Spans, window: int | None = None) -> Array:
        """Causal attention of q, float32 [tokens, Hq, D] after RoPE, of the spans' tokens over their sequences up to
        themselves. Returns float32 [tokens, Hq, D]."""

    def copy_page(self, source: int, target: int) -> None:
        """Make page `target` an exact copy of page `source`."""

    def read(self, block_table: Array, length: int) -> tuple[Array, Array]:
        """K and V of the first `length` tokens as float32 [length, Hkv, D], for evaluation."""


class FusedLayers(Protocol):
    """Consecutive layers that run in one call."""

    def run(self, x: Array, tables: tuple[Array, Array], spans: Spans) -> None:
        """Append the spans' tokens to the layers' caches and let x [tokens, hidden] pass through, in place."""


class Backend(Protocol):
    """Makes the parts of a decoder and runs them."""

    def linear(self, table: LinearTable) -> Linear:
        """The linear of these weights."""

    def norm(self, weight: Array, eps: float, bias: Array | None = None) -> Norm:
        """The norm of weight and bias [size]."""

    def embedding(self, weight: Array) -> Embedding:
        """The embedding of weight [vocab, hidden]."""

    def rope(self, x: Array, cos: Array, sin: Array) -> Array:
        """x [tokens, heads, D] with channel pairs (i, i + D/2) rotated by tables [tokens, 1, D]; x is used up."""

    def silu_times(self, gate: Array, up: Array) -> Array:
        """SwiGLU's product of [tokens, n] each."""

    def int8_pages(self, scheme: AttentionScheme, num_pages: int, page_size: int) -> Pages:
        """Empty pages of a layer whose attention is int8."""

    def float_pages(
        self, num_heads: int, num_kv_heads: int, head_dim: int, num_pages: int, page_size: int, dtype: str = "float32"
    ) -> Pages:
        """Empty pages of float32 or bfloat16."""

    def can_fuse(self, layer: Any, pages: Pages) -> bool:
        """Whether a DecoderLayer and its cache can be part of fused layers."""

    def fuse(
        self, layers: Sequence[Any], pages: Sequence[Pages], windows: Sequence[int | None], isa: str | None = None
    ) -> FusedLayers:
        """Some DecoderLayers, each of which `can_fuse`, as one call with the bits of their own steps."""


BACKENDS = {"cpu": ".cpu:CpuBackend", "torch": ".torch_backend:TorchBackend"}
"""By name, where they are. Each is imported when it is used."""


def make_backend(name: str, **options: Any) -> Backend:
    """The backend of that name.

    Raises:
        KeyError: there is none.
    """
    module, _, kind = BACKENDS[name].partition(":")
    return cast(Backend, getattr(import_module(module, __package__), kind)(**options))
