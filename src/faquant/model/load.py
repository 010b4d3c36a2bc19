"""From a directory to a Model: float checkpoints, ours, and the ecosystem's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.model_config import KvCacheDtype, ModelConfig
from ..errors import UsageError
from ..formats.base import Opened, has_bias, linear_shape, open_checkpoint, read_deq_scale
from ..formats.faquant.metadata import ROTATED_TYPE, Metadata
from ..formats.msmodelslim.description import Description
from ..formats.schemes import Checked
from ..kernels.pages import TILE, BFloat16Pages, FloatPages, Int8Pages, Pages
from ..kernels.scheme import AttentionScheme
from .decoder import Decoder, build_decoder
from .linear import DynamicLinear, FloatLinear, Linear, StaticLinear


@dataclass
class Model:
    """A model ready to run. A layer whose scheme is None has float attention.

    `max_position` is how many tokens of context it may be used for. `metadata` is None unless faquant made it.
    """

    config: ModelConfig
    decoder: Decoder
    schemes: Sequence[AttentionScheme | None]
    max_position: int
    description: Description | None = None
    metadata: Metadata | None = None

    def is_int8(self) -> bool:
        """Whether all that takes time is int8: every layer's linears and attention, and the head."""
        return (
            None not in self.schemes
            and all(layer.is_int8 for layer in self.decoder.layers)
            and not isinstance(self.decoder.lm_head, FloatLinear)
        )

    def make_pages(self, num_pages: int, page_size: int, kv_cache_dtype: KvCacheDtype = "auto") -> list[Pages]:
        """Empty cache pages for every layer: "auto" as the checkpoint says, int8 or float; or all "bfloat16".

        Raises:
            ValueError: kv_cache_dtype is neither.
        """
        c = self.config
        if kv_cache_dtype == "auto":
            return [self.make_layer_pages(layer, num_pages, page_size) for layer in range(c.num_layers)]
        if kv_cache_dtype == "bfloat16":
            return [
                BFloat16Pages(c.num_heads, c.num_kv_heads, c.head_dim, num_pages, page_size)
                for _ in range(c.num_layers)
            ]
        raise ValueError(f"kv_cache_dtype is 'auto' or 'bfloat16', not {kv_cache_dtype!r}")

    def cache_bytes_per_token(self, kv_cache_dtype: KvCacheDtype = "auto") -> int:
        """Bytes that one token takes in the cache of all layers. Raises: as make_pages."""
        return sum(pages.bytes_per_token for pages in self.make_pages(1, TILE, kv_cache_dtype))

    def make_layer_pages(self, layer: int, num_pages: int, page_size: int, position: int = 0) -> Pages:
        """Empty cache pages of one layer, for sequences whose first token stands at `position`: 0, or when measuring
        another multiple of MAP_BLOCK."""
        c, scheme = self.config, self.schemes[layer]
        if scheme is None:
            return FloatPages(c.num_heads, c.num_kv_heads, c.head_dim, num_pages, page_size)
        return Int8Pages(scheme.starting_at(position) if position else scheme, num_pages, page_size)


def load(directory: Path, lazy: bool = False) -> Model:
    """Load a float or a quantized directory; float parts compute in float32.

    With `lazy` the weights are read when they are used and not kept, so that one layer at a time needs memory.

    Raises:
        CheckpointError: files are missing, damaged, or contradict one another.
        UnsupportedError: the model is of a kind that this program does not run.
    """
    opened = open_checkpoint(directory)
    if opened.description is None:
        return _load_float(opened, torch.float32, lazy)
    return Model(
        config=opened.config,
        decoder=build_decoder(
            opened.config,
            opened.checked.finite,
            partial(read_linear, opened.checked, opened.config, opened.description.tensor_types, opened.metadata),
            opened.checked.__contains__,
            lazy=lazy,
            fused_norm=opened.description.tensor_types.get("lm_head.weight", "FLOAT") != "FLOAT",
        ),
        schemes=opened.schemes,
        max_position=opened.max_position,
        description=opened.description,
        metadata=opened.metadata,
    )


def load_float(directory: Path, dtype: torch.dtype = torch.float32) -> Model:
    """Load a float directory; everything computes in `dtype`.

    Raises: as load, and UsageError where the directory is quantized.
    """
    opened = open_checkpoint(directory)
    if opened.description is not None:
        raise UsageError(f"{directory} is quantized already. Name the float model that it was made from.")
    return _load_float(opened, dtype)


def _load_float(opened: Opened, dtype: torch.dtype, lazy: bool = False) -> Model:
    config, checked = opened.config, opened.checked

    def tensor(name: str) -> Tensor:
        return checked.finite(name).to(dtype)

    def linear(name: str) -> Linear:
        return float_linear(checked, config, name, dtype)

    return Model(
        config=config,
        decoder=build_decoder(config, tensor, linear, checked.__contains__, dtype, lazy),
        schemes=opened.schemes,
        max_position=opened.max_position,
    )


def float_linear(checked: Checked, config: ModelConfig, name: str, dtype: torch.dtype) -> FloatLinear:
    """The float linear `name`, in `dtype`; a tied head is the embedding."""
    if name == "lm_head" and "lm_head.weight" not in checked:
        return FloatLinear(checked.finite("model.embed_tokens.weight").to(dtype))
    bias = None
    if has_bias(config, name):
        bias = checked.finite(f"{name}.bias", (linear_shape(config, name)[0],)).to(dtype)
    return FloatLinear(checked.finite(f"{name}.weight").to(dtype), bias)


def read_linear(
    checked: Checked, config: ModelConfig, types: Mapping[str, str], metadata: Metadata | None, name: str
) -> Linear:
    """The linear `name`, of the type that `types` gives its weight; float ones compute in float32."""
    kind = types.get(f"{name}.weight", "FLOAT")
    if kind == "FLOAT":
        return float_linear(checked, config, name, torch.float32)
    n, _ = linear_shape(config, name)
    weight = checked.get(f"{name}.weight", dtype=torch.int8)
    if kind == "W8A8":
        return StaticLinear(
            weight,
            checked.positive(f"{name}.input_scale", (1,)),
            checked.finite(f"{name}.input_offset", (1,)).float(),
            checked.get(f"{name}.quant_bias", (n,), torch.int32),
            read_deq_scale(checked, name, n),
        )
    block = metadata.input_block(name) if metadata and kind == ROTATED_TYPE else 0
    bias = checked.finite(f"{name}.bias", (n,)).float() if has_bias(config, name) else None
    return DynamicLinear(weight, checked.positive(f"{name}.weight_scale", (n, 1))[:, 0].contiguous(), bias, block)
