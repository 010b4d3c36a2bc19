"""Loads a Model from a directory: the format reads plain tables, and a backend makes the parts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..checkpoint.model_config import KvCacheDtype, ModelConfig
from ..errors import UsageError
from ..formats import open_checkpoint
from ..formats.base import Opened
from ..formats.faquant.metadata import Metadata
from ..kernels.backend import Backend, Pages, make_backend
from ..kernels.scheme import TILE, AttentionScheme
from .decoder import Decoder, build_decoder


@dataclass
class Model:
    """A model ready to run. A layer whose scheme is None has float attention.

    Attributes:
        max_position: the maximum context in tokens.
        quant_type: the type of the linears, as `model_quant_type` of a description.
        recipe_name: the recipe's name, or where the checkpoint comes from.
        metadata: None unless faquant wrote the checkpoint.
    """

    config: ModelConfig
    decoder: Decoder
    schemes: Sequence[AttentionScheme | None]
    max_position: int
    quant_type: str = "FLOAT"
    recipe_name: str = "float"
    metadata: Metadata | None = None
    backend: Backend = field(default_factory=lambda: make_backend("cpu"))

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.quant_type == "FLOAT" and not any(self.schemes)

    def make_pages(self, num_pages: int, page_size: int, kv_cache_dtype: KvCacheDtype = "auto") -> list[Pages]:
        """Empty cache pages for every layer: "auto" as the checkpoint specifies, int8 or float32; or "bfloat16" for all
        layers.

        Raises:
            ValueError: kv_cache_dtype is unknown.
        """
        layers = range(self.config.num_layers)
        if kv_cache_dtype == "auto":
            return [self.make_layer_pages(layer, num_pages, page_size) for layer in layers]
        if kv_cache_dtype == "bfloat16":
            return [self._float_pages(num_pages, page_size, "bfloat16") for _ in layers]
        raise ValueError(f"kv_cache_dtype must be 'auto' or 'bfloat16', not {kv_cache_dtype!r}")

    def cache_bytes_per_token(self, kv_cache_dtype: KvCacheDtype = "auto") -> int:
        """Bytes per token in the cache of all layers. Raises: as make_pages."""
        return sum(pages.bytes_per_token for pages in self.make_pages(1, TILE, kv_cache_dtype))

    def make_layer_pages(self, layer: int, num_pages: int, page_size: int, position: int = 0) -> Pages:
        """Empty cache pages of one layer, for sequences whose first token is at `position`: 0, or another multiple of
        TILE for measurements.

        Raises:
            ValueError: `position` is not a multiple of TILE.
        """
        scheme = self.schemes[layer]
        if scheme is None:
            return self._float_pages(num_pages, page_size, "float32")
        return self.backend.int8_pages(scheme.starting_at(position) if position else scheme, num_pages, page_size)

    def _float_pages(self, num_pages: int, page_size: int, dtype: str) -> Pages:
        c = self.config
        return self.backend.float_pages(c.num_heads, c.num_kv_heads, c.head_dim, num_pages, page_size, dtype)


def load(directory: Path, lazy: bool = False, backend: Backend | None = None) -> Model:
    """Load a float or a quantized directory; float parts compute in float32.

    Args:
        lazy: read weights on each use and do not keep them, so that only one layer at a time needs memory.
        backend: None: the CPU backend.

    Raises:
        CheckpointError: files are missing, damaged, or contradict one another.
        UnsupportedError: this kind of model is not supported.
    """
    opened = open_checkpoint(directory)
    if not lazy:
        opened.check_values()
    return build_model(opened, backend or make_backend("cpu"), lazy)


def load_float(directory: Path, lazy: bool = False, backend: Backend | None = None) -> Model:
    """As load, for a model whose linears are float; attention is float, even if the directory has tables for it.

    Raises:
        UsageError: its linears are quantized.
    """
    model = load(directory, lazy, backend)
    if model.quant_type != "FLOAT":
        raise UsageError(f"{directory} is quantized. Pass the float model that it was made from.")
    return replace(model, schemes=[None] * model.config.num_layers)


def build_model(opened: Opened, backend: Backend, lazy: bool = False) -> Model:
    """Build the model of an open checkpoint of any format. Raises: CheckpointError: a weight is damaged."""
    return Model(
        config=opened.config,
        decoder=build_decoder(
            opened.config,
            backend,
            opened.tensor,
            lambda name: backend.linear(opened.linear(name)),
            opened.checked.__contains__,
            lazy,
        ),
        schemes=opened.schemes,
        max_position=opened.max_position,
        quant_type=opened.quant_type,
        recipe_name=opened.recipe_name,
        metadata=opened.metadata,
        backend=backend,
    )
