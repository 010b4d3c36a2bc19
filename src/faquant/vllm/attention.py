"""A layer's cache in vLLM's pages, and what vLLM's scheduler says about a step."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.platforms import current_platform
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheLayout

from ..errors import UnsupportedError
from ..kernels.pages import Spans
from ..kernels.scheme import TILE


@dataclass
class Step:
    """The tokens that run together, as faquant's kernels take them.

    Attributes:
        tokens: their number.
        page_size: tokens in a page.
        slots: the slot for each token's key and value, int64 [tokens], if it is on a GPU as the block tables are.
    """

    spans: Spans
    tokens: int
    page_size: int
    slots: Tensor | None


class StepBuilder(AttentionMetadataBuilder[Step]):
    """Makes a Step of vLLM's metadata, once for all layers."""

    # A step reads numbers on the CPU, which a graph of vLLM's would not. On a GPU, fused layers have their own graphs.
    _cudagraph_support = AttentionCGSupport.NEVER

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Step:
        given = common_attn_metadata
        count, page_size = given.num_reqs, self.kv_cache_spec.block_size
        lengths = self._lengths(given)[:count].numpy().astype(np.int64)
        counts = np.diff(given.query_start_loc_cpu[: count + 1].numpy().astype(np.int64))
        tokens, tables, slots = int(counts.sum()), given.block_table_tensor[:count], None
        if current_platform.is_cuda():
            tables, slots = tables.contiguous(), given.slot_mapping[:tokens]
        else:
            pages = -(-int(lengths.max(initial=1)) // page_size)
            tables = tables[:, :pages].numpy().astype(np.int64)
        return Step(Spans(np.stack([counts, lengths - counts], axis=1), tables), tokens, page_size, slots)

    def _lengths(self, given: CommonAttentionMetadata) -> Tensor:
        """The length of each sequence with the tokens of this step, on the CPU. With a GPU, vLLM knows it there without
        waiting for the GPU, but with speculated tokens only an upper bound."""
        known: Tensor | None = given.seq_lens_cpu_upper_bound
        if current_platform.is_cuda() and known is not None and self.vllm_config.speculative_config is None:
            return known
        lengths: Tensor = given.seq_lens.cpu()
        return lengths


class FaquantAttention(AttentionBackend):
    """Attention runs within the model's forward; vLLM only takes the metadata's builder and sizes of pages from it."""

    @staticmethod
    def get_name() -> str:
        return "FAQUANT"

    @staticmethod
    def get_impl_cls() -> Any:
        """vLLM asks for this class to learn what it supports, and takes this error to mean that it does not support
        context parallelism."""
        raise NotImplementedError("faquant's model calls its kernels itself")

    @staticmethod
    def get_builder_cls() -> type[StepBuilder]:
        return StepBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(TILE)]

    @classmethod
    def supports_device_cpu_query_lens_mismatch(cls) -> bool:
        return False

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return True

    @classmethod
    def supports_kv_connector(cls) -> bool:
        """Connectors work layer by layer, and the layers are one call."""
        return False

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Those in which the bytes of a page are contiguous."""
        return KVCacheLayout.LBHNC, KVCacheLayout.BLHNC


class LayerCache(AttentionLayerBase):
    """Where vLLM puts the cache of one layer.

    Attributes:
        kv_cache: what vLLM has bound, int8 [pages, Hkv, page_size, bytes]; empty until then.
    """

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, bytes_per_token: int) -> None:
        self.num_heads = num_heads
        self.kv_cache = torch.empty(0, dtype=torch.int8)
        self._num_kv_heads, self._head_dim, self.bytes_per_token = num_kv_heads, head_dim, bytes_per_token

    def get_attn_backend(self) -> type[AttentionBackend]:
        return FaquantAttention

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> FullAttentionSpec:
        return FullAttentionSpec(
            block_size=vllm_config.cache_config.block_size,
            num_kv_heads=self._num_kv_heads,
            head_size=self._head_dim,
            dtype=torch.int8,
            state_content_bytes=self.bytes_per_token // self._num_kv_heads,
        )

    @property
    def pages(self) -> Tensor:
        """The bound memory as uint8 [pages, bytes].

        Raises:
            UnsupportedError: the bytes of a page are not contiguous.
        """
        first = self.kv_cache[0]
        if not first.is_contiguous():
            raise UnsupportedError(
                f"vLLM's cache pages have strides {first.stride()}: faquant needs contiguous pages. Unset "
                "VLLM_KV_CACHE_LAYOUT."
            )
        stride = self.kv_cache.stride(0)
        return self.kv_cache.as_strided((len(self.kv_cache), first.numel()), (stride, 1)).view(torch.uint8)
