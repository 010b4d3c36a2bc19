"""Settings of vLLM's: which of them faquant's models cannot run with, and the plugin's own."""

from typing import Any

import torch
from vllm.config import CompilationMode, VllmConfig
from vllm.platforms import current_platform

from ..errors import UnsupportedError, UsageError
from ..formats.base import Opened
from ..kernels.scheme import TILE

OWN = "faquant"
"""How the plugin's keys in --additional-config begin."""
SCALES = "faquant_scales"
WITHOUT_DRAFT_MODEL = ("ngram", "suffix")
"""Methods of speculation that propose tokens without a model."""


def scales_of(vllm_config: VllmConfig) -> str:
    """`row`: a row that is divided among ranks is rounded by one scale, as on one rank; `shard`: each rank has its own.

    Raises:
        UsageError: the setting has another value, or another setting begins like the plugin's.
    """
    given: Any = vllm_config.additional_config
    settings = given if isinstance(given, dict) else {}
    for name in settings:
        if str(name).startswith(OWN) and name != SCALES:
            raise UsageError(f"--additional-config: {name!r:.80} is unknown. The plugin's only setting is {SCALES}.")
    chosen = settings.get(SCALES, "row")
    if chosen not in ("row", "shard"):
        raise UsageError(f"{SCALES} in --additional-config must be row or shard, not {chosen!r:.80}.")
    return str(chosen)


def check(vllm_config: VllmConfig, opened: Opened) -> None:
    """Raises: UnsupportedError: the model cannot run with these settings."""
    _check_model(vllm_config.model_config, opened)
    _check_features(vllm_config)
    cache = vllm_config.cache_config
    # A size that the user has not given is vLLM's to choose, from those that FaquantAttention names.
    if cache.user_specified_block_size and cache.block_size % TILE:
        raise UnsupportedError(
            f"--block-size {cache.block_size}: faquant's pages hold a multiple of {TILE} tokens. Leave the flag out, "
            f"or pass {-(-cache.block_size // TILE) * TILE}."
        )
    pipeline = vllm_config.parallel_config.pipeline_parallel_size
    is_eager = vllm_config.compilation_config.mode == CompilationMode.NONE
    if pipeline > 1 and is_eager and not current_platform.is_cuda():
        # CPUModelRunner.warming_up_model returns early, and nothing else makes the buffer for the ranks' streams.
        raise UnsupportedError(
            "On CPUs, vLLM runs pipelines only without --enforce-eager: with it, the first request ends the service. "
            "Leave the flag out; faquant's model is not compiled in any case."
        )


def _check_model(model: Any, opened: Opened) -> None:
    if model.runner_type != "generate" or model.convert_type != "none":
        raise UnsupportedError(
            f"faquant's models generate text; --runner {model.runner_type} with --convert {model.convert_type} needs a "
            "model that returns vectors. Leave both flags out."
        )
    if model.hf_overrides or model.hf_config_path not in (None, model.model):
        raise UnsupportedError(
            "--hf-overrides and --hf-config-path have no effect on faquant's models, which were quantized and "
            "calibrated with their own config.json. Change config.json of the float model and quantize it again."
        )
    if model.enable_prompt_embeds and model.dtype != torch.float32:
        raise UnsupportedError(
            "--enable-prompt-embeds: vLLM copies faquant's embeddings, which are float32, into a buffer of its own "
            f"dtype, {model.dtype}. Pass --dtype float32."
        )
    if model.max_model_len > opened.max_position:
        raise UnsupportedError(
            f"vLLM's context is {model.max_model_len:,} tokens, but {opened.directory} was calibrated for "
            f"{opened.max_position:,}. Pass --max-model-len {opened.max_position}."
        )
    if opened.config.rope.rope_type == "dynamic":
        raise UnsupportedError(
            "RoPE of type dynamic depends on the length of each request, which vLLM does not tell. Serve this model "
            "with `faquant serve`."
        )


def _check_features(vllm_config: VllmConfig) -> None:
    if vllm_config.lora_config is not None:
        raise UnsupportedError("faquant's linears take no LoRA adapters. Merge the adapter before quantizing.")
    speculation = vllm_config.speculative_config
    if speculation is not None and speculation.method not in WITHOUT_DRAFT_MODEL:
        raise UnsupportedError(
            f"--speculative-config: faquant's models run without a draft model, so the method {speculation.method} is "
            f"not available. Choose {' or '.join(WITHOUT_DRAFT_MODEL)}."
        )
    if vllm_config.kv_transfer_config is not None:
        raise UnsupportedError(
            "--kv-transfer-config and --kv-offloading-size: vLLM's connectors copy the cache layer by layer, while "
            "faquant runs all layers in one call, so nothing would be copied. Leave the flag out."
        )
