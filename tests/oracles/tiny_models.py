"""Tiny random models, made by transformers, saved as Hugging Face directories."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

COMMON = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    "long_factor": [1.0, 1.5, 3.0, 6.0, 7.0, 8.0],
    "original_max_position_embeddings": 64,
}
KINDS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama2": (LlamaConfig, {"num_key_value_heads": 4}),
    "llama3": (LlamaConfig, {"num_attention_heads": 8, "head_dim": 8, "rope_parameters": LLAMA3_ROPE}),
    "llama-bias": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "smollm": (
        LlamaConfig,
        {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    ),
    "mistral": (MistralConfig, {"sliding_window": None, "head_dim": 24}),
    "mistral-window": (MistralConfig, {"sliding_window": 24}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2-window": (Qwen2Config, {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
    "qwen3": (Qwen3Config, {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3-bias": (Qwen3Config, {"head_dim": 24, "attention_bias": True}),
    "smollm3": (SmolLM3Config, {"num_hidden_layers": 4, "pad_token_id": 0}),
    "smollm3-window": (
        SmolLM3Config,
        {
            "no_rope_layers": [0, 1, 1],
            "use_sliding_window": True,
            "sliding_window": 24,
            "pad_token_id": 0,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "granite": (
        GraniteConfig,
        {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.125,
            "residual_multiplier": 0.22,
            "logits_scaling": 4.0,
            "tie_word_embeddings": True,
        },
    ),
    "granite-bias": (
        GraniteConfig,
        {
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.5,
            "residual_multiplier": 0.3,
            "logits_scaling": 0.5,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "phi3": (Phi3Config, {"num_key_value_heads": 4, "sliding_window": 24, "pad_token_id": 0}),
    "phi4-mini": (
        Phi3Config,
        {
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 64,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
    ),
    "olmo2": (Olmo2Config, {"attention_bias": True, "pad_token_id": 0}),
    "olmo3": (
        Olmo3Config,
        {
            "num_hidden_layers": 4,
            "sliding_window": 24,
            "pad_token_id": 0,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 500000.0,
                    "factor": 8.0,
                    "original_max_position_embeddings": 64,
                    "attention_factor": 1.2,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
            },
        },
    ),
    "gemma3": (
        Gemma3TextConfig,
        {
            "head_dim": 24,
            "query_pre_attn_scalar": 40,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "pad_token_id": 0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "ministral": (
        MinistralConfig,
        {
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "sliding_window": 24,
            "head_dim": 24,
        },
    ),
}
"""smollm has 9 query and 3 key/value heads and a tied head. Overrides may change anything in these."""


def tiny_model(
    kind: str, directory: Path, dtype: str = "float32", seed: int = 0, max_shard_size: str = "1GB", **overrides: Any
) -> PreTrainedModel:
    """Make a model of a kind in KINDS, save it in `directory`, and return it for comparison.

    Its weights, norms and biases are random, and large enough that attention is far from uniform.
    """
    config_class, settings = KINDS[kind]
    config = config_class(**{**COMMON, **settings, **overrides})
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_random(name, parameter, generator))
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    return model


def _random(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if name.endswith("norm.weight"):
        return parameter + 0.3 * noise  # a fresh one is all 1, or 0 if 1 is added to it
    if name.endswith("bias"):
        return 0.5 * noise
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        return 0.3 * noise
    return noise * (1.5 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0) / parameter.shape[1] ** 0.5


def spell_as_before_v5(directory: Path, key: str = "rope_type") -> None:
    """Rewrite config.json as transformers 4 did: rope_theta, rope_scaling (with `key` for the type), torch_dtype."""
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:  # layers with a window had plain RoPE
        if config["model_type"] == "gemma3_text":
            config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    rope_type = rope.pop("rope_type")
    config["rope_scaling"] = None if rope_type == "default" else {key: rope_type, **rope}
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config), encoding="utf-8")
