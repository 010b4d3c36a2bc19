"""What the plugin uses of vLLM is still there, under the same names and with the same parameters."""

import inspect
from dataclasses import fields
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from faquant.vllm import VERSION
from faquant.vllm.generators import _sample_tokens

pytestmark = pytest.mark.vllm

HOOKS: dict[str, list[str] | None] = {
    # What the plugin registers.
    "vllm.model_executor.layers.quantization:register_quantization_config": ["quantization"],
    "vllm.model_executor.model_loader:register_model_loader": ["load_format"],
    # What vLLM asks of a quantization.
    "vllm.model_executor.layers.quantization.base_config:QuantizationConfig.get_supported_act_dtypes": ["self"],
    "vllm.model_executor.layers.quantization.base_config:QuantizationConfig.get_min_capability": [],
    "vllm.model_executor.layers.quantization.base_config:QuantizationConfig.get_config_filenames": [],
    "vllm.model_executor.layers.quantization.base_config:QuantizationConfig.from_config": ["config"],
    "vllm.model_executor.layers.quantization.base_config:QuantizationConfig.override_quantization_method": [
        "hf_quant_cfg",
        "user_quant",
        "hf_config",
    ],
    "vllm.model_executor.layers.quantization.base_config:QuantizationConfig.maybe_update_config": [
        "self",
        "model_name",
        "hf_config",
        "revision",
    ],
    "vllm.model_executor.layers.quantization.base_config:QuantizationConfig.get_quant_method": [
        "self",
        "layer",
        "prefix",
    ],
    # The loader.
    "vllm.model_executor.model_loader:DefaultModelLoader.load_model": [
        "self",
        "vllm_config",
        "model_config",
        "prefix",
    ],
    # The cache.
    "vllm.model_executor.layers.attention_layer_base:AttentionLayerBase.get_attn_backend": ["self"],
    "vllm.model_executor.layers.attention_layer_base:AttentionLayerBase.get_kv_cache_spec": ["self", "vllm_config"],
    "vllm.model_executor.layers.attention_layer_base:AttentionLayerBase.bind_kv_cache": ["self", "kv_cache"],
    "vllm.v1.attention.backend:AttentionBackend.get_name": [],
    "vllm.v1.attention.backend:AttentionBackend.get_impl_cls": [],
    "vllm.v1.attention.backend:AttentionBackend.get_builder_cls": [],
    "vllm.v1.attention.backend:AttentionBackend.get_supported_kernel_block_sizes": ["kv_cache_spec"],
    "vllm.v1.attention.backend:AttentionBackend.supports_device_cpu_query_lens_mismatch": [],
    "vllm.v1.attention.backend:AttentionBackend.supports_batch_invariance": [],
    "vllm.v1.attention.backend:AttentionBackend.supports_kv_connector": [],
    "vllm.v1.attention.backend:AttentionCGSupport.NEVER": None,
    "vllm.v1.attention.backend:AttentionMetadataBuilder._cudagraph_support": None,
    "vllm.v1.attention.backend:AttentionMetadataBuilder.__init__": [
        "self",
        "kv_cache_spec",
        "layer_names",
        "vllm_config",
        "device",
    ],
    "vllm.v1.attention.backend:AttentionMetadataBuilder.build": [
        "self",
        "common_prefix_len",
        "common_attn_metadata",
        "fast_build",
    ],
    "vllm.v1.kv_cache_interface:FullAttentionSpec": None,
    "vllm.v1.kv_cache_interface:KVCacheLayout.LBHNC": None,
    "vllm.v1.kv_cache_interface:KVCacheLayout.BLHNC": None,
    # The device.
    "vllm.platforms:current_platform": None,
    "vllm.platforms.interface:Platform.is_cuda": ["self"],
    # What a step and its ranks are.
    "vllm.forward_context:get_forward_context": [],
    "vllm.distributed:get_tp_group": [],
    "vllm.distributed:get_pp_group": [],
    "vllm.distributed:get_world_group": [],
    "vllm.distributed.utils:get_pp_indices": ["num_hidden_layers", "pp_rank", "pp_size"],
    "vllm.sequence:IntermediateTensors": None,
    # Seeds on CPUs.
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.sample_tokens": ["self", "grammar_output"],
    # faquant evaluate --engine vllm
    "vllm:LLM.apply_model": ["self", "func"],
}
FIELDS = {
    "vllm.v1.attention.backend:CommonAttentionMetadata": {
        "query_start_loc_cpu",
        "seq_lens",
        "seq_lens_cpu_upper_bound",
        "num_reqs",
        "block_table_tensor",
        "slot_mapping",
    },
    "vllm.v1.kv_cache_interface:FullAttentionSpec": {
        "block_size",
        "num_kv_heads",
        "head_size",
        "dtype",
        "state_content_bytes",
    },
    "vllm.forward_context:ForwardContext": {"attn_metadata"},
    "vllm.config:CompilationConfig": {"mode", "static_forward_context"},
    "vllm.config:VllmConfig": {"additional_config", "kv_transfer_config", "lora_config", "speculative_config"},
    "vllm.config:ModelConfig": {
        "convert",
        "dtype",
        "enable_prompt_embeds",
        "hf_config_path",
        "hf_overrides",
        "max_model_len",
        "runner",
    },
    "vllm.config:CacheConfig": {"block_size", "user_specified_block_size"},
    "vllm.config:SpeculativeConfig": {"method"},
}


def found(name: str) -> Any:
    module, _, path = name.partition(":")
    thing: Any = import_module(module)
    for part in path.split("."):
        thing = inspect.getattr_static(thing, part) if inspect.isclass(thing) else getattr(thing, part)
        thing = thing.__func__ if isinstance(thing, (classmethod, staticmethod)) else thing
    return thing


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_where_the_plugin_expects_it(name: str) -> None:
    thing, parameters = found(name), HOOKS[name]
    if parameters is not None:
        assert [each for each in inspect.signature(thing).parameters if each != "cls"] == parameters


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name: str) -> None:
    assert FIELDS[name] <= {field.name for field in fields(found(name))}


def test_generators_of_discarded_tokens_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler does not see them, and they are back afterwards."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    # Without these names, the guard would do nothing.
    source = inspect.getsource(GPUModelRunner)
    assert "self.discard_request_mask.np[:num_reqs]" in source
    assert "self.input_batch.generators.get(int(i))" in source
    assert vars(CPUModelRunner).get("sample_tokens", _sample_tokens) is _sample_tokens

    runner = object.__new__(CPUModelRunner)
    runner.input_batch = SimpleNamespace(num_reqs=3, generators={0: "first", 2: "third"})
    runner.discard_request_mask = SimpleNamespace(np=np.array([False, True, True, True]))
    seen: list[dict[int, str]] = []

    def sample(self: Any, _: None) -> None:
        seen.append(dict(self.input_batch.generators))

    monkeypatch.setattr(GPUModelRunner, "sample_tokens", sample)
    _sample_tokens(runner, None)
    assert seen == [{0: "first"}]
    assert runner.input_batch.generators == {0: "first", 2: "third"}


def test_version() -> None:
    from vllm import __version__

    assert __version__.startswith(f"{VERSION}.")


def test_a_layer_s_page_is_heads_by_tokens_by_bytes() -> None:
    """vLLM computes a page's size from the bytes that we state."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    spec = FullAttentionSpec(block_size=256, num_kv_heads=3, head_size=64, dtype=torch.int8, state_content_bytes=132)
    assert spec.page_size_bytes == 3 * 256 * 132
