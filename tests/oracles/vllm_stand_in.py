"""What the plugin for vLLM imports of it, so that it runs without vLLM: one rank, and a platform that the test chooses.

The names and the fields are vLLM's; tests/vllm_plugin/test_contract.py compares them with vLLM itself.
"""

import enum
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

Metadata = TypeVar("Metadata")


class AttentionLayerBase:
    def bind_kv_cache(self, kv_cache: Tensor) -> None:
        self.kv_cache = kv_cache


class AttentionBackend:
    pass


class AttentionCGSupport(enum.Enum):
    NEVER = 0


class CompilationMode(enum.Enum):
    NONE = 0


class AttentionMetadataBuilder(Generic[Metadata]):
    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        self.kv_cache_spec, self.vllm_config = kv_cache_spec, vllm_config


class KVCacheLayout(enum.Enum):
    LBHNC = 0
    BLHNC = 1


@dataclass
class FullAttentionSpec:
    block_size: int
    num_kv_heads: int
    head_size: int
    dtype: torch.dtype
    state_content_bytes: int


@dataclass
class IntermediateTensors:
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


class StandIn:
    """The state of this vLLM: what get_forward_context and current_platform tell."""

    def __init__(self, *, is_cuda: bool) -> None:
        self.context = SimpleNamespace(attn_metadata=None)
        group = SimpleNamespace(
            rank_in_group=0,
            world_size=1,
            is_first_rank=True,
            is_last_rank=True,
            cpu_group=None,
            all_gather=lambda x, dim: x,
        )
        groups = dict.fromkeys(("get_pp_group", "get_tp_group", "get_world_group"), lambda: group)
        self.modules: dict[str, dict[str, Any]] = {
            "vllm": {},
            "vllm.config": {"CompilationMode": CompilationMode, "VllmConfig": object},
            "vllm.distributed": groups,
            "vllm.distributed.utils": {"get_pp_indices": lambda layers, rank, ranks: (0, layers)},
            "vllm.forward_context": {"get_forward_context": lambda: self.context},
            "vllm.logger": {"init_logger": logging.getLogger},
            "vllm.model_executor": {},
            "vllm.model_executor.layers": {},
            "vllm.model_executor.layers.attention_layer_base": {"AttentionLayerBase": AttentionLayerBase},
            "vllm.platforms": {"current_platform": SimpleNamespace(is_cuda=lambda: is_cuda)},
            "vllm.sequence": {"IntermediateTensors": IntermediateTensors},
            "vllm.v1": {},
            "vllm.v1.attention": {},
            "vllm.v1.attention.backend": {
                "AttentionBackend": AttentionBackend,
                "AttentionCGSupport": AttentionCGSupport,
                "AttentionMetadataBuilder": AttentionMetadataBuilder,
                "CommonAttentionMetadata": SimpleNamespace,
                "MultipleOf": SimpleNamespace,
            },
            "vllm.v1.kv_cache_interface": {"FullAttentionSpec": FullAttentionSpec, "KVCacheLayout": KVCacheLayout},
        }

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Imports find it, and torch.distributed has one process. What has imported it is forgotten at the end."""
        before = dict(sys.modules)
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        for name, contents in self.modules.items():
            sys.modules[name] = ModuleType(name)
            vars(sys.modules[name]).update(contents)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()
            for name in set(sys.modules) - set(before):
                if name.split(".")[0] == "vllm" or name.startswith("faquant.vllm"):
                    del sys.modules[name]
            sys.modules.update({name: module for name, module in before.items() if name.split(".")[0] == "vllm"})

    @staticmethod
    def config(directory: Path, max_model_len: int) -> Any:
        """A VllmConfig for this checkpoint."""
        return SimpleNamespace(
            model_config=SimpleNamespace(
                model=str(directory),
                max_model_len=max_model_len,
                runner_type="generate",
                convert_type="none",
                hf_overrides={},
                hf_config_path=None,
                enable_prompt_embeds=False,
                dtype=torch.bfloat16,
            ),
            cache_config=SimpleNamespace(block_size=128, user_specified_block_size=False),
            compilation_config=SimpleNamespace(static_forward_context={}, mode=CompilationMode.NONE),
            parallel_config=SimpleNamespace(local_world_size=1, pipeline_parallel_size=1),
            lora_config=None,
            speculative_config=None,
            kv_transfer_config=None,
            additional_config={},
        )

    @staticmethod
    def bind_pages(layers: dict[str, Any], config: Any, num_pages: int) -> Tensor:
        """Bind caches in which a page of each layer lies beside that of the next (layout BLHNC), and return all."""
        specs = [layer.get_kv_cache_spec(config) for layer in layers.values()]
        sizes = [spec.num_kv_heads * spec.block_size * spec.state_content_bytes for spec in specs]
        whole = torch.full((num_pages, sum(sizes)), 0x7F, dtype=torch.int8)
        for layer, spec, memory in zip(layers.values(), specs, whole.split(sizes, dim=1), strict=True):
            layer.bind_kv_cache(memory.view(num_pages, spec.num_kv_heads, spec.block_size, spec.state_content_bytes))
        return whole

    @staticmethod
    def metadata(parts: list[tuple[int, int, list[int]]], wrong: int = 77) -> Any:
        """CommonAttentionMetadata of (tokens, start, pages) of each sequence, as on a GPU: numbers on the CPU, and on
        the GPU block tables as wide as the longest context, with old pages behind those of a sequence. `wrong` is what
        may not be read: lengths that are still computed on the GPU."""
        counts, starts = np.array([part[:2] for part in parts]).T
        tables = torch.full((len(parts), 4), wrong, dtype=torch.int32)
        slots = []
        for row, (count, start, pages) in zip(tables, parts, strict=True):
            row[: len(pages)] = torch.tensor(pages)
            slots += [pages[at // 128] * 128 + at % 128 for at in range(start, start + count)]
        return SimpleNamespace(
            num_reqs=len(parts),
            query_start_loc_cpu=torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32),
            seq_lens=torch.full((len(parts),), wrong, dtype=torch.int32),
            seq_lens_cpu_upper_bound=torch.from_numpy((counts + starts).astype(np.int32)),
            block_table_tensor=tables,
            slot_mapping=torch.tensor([*slots, -1, -1]),
        )
