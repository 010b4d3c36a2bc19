"""Valid contents of config.json, which tests modify, and the errors of invalid ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from faquant.checkpoint.model_config import parse_config
from faquant.errors import CheckpointError, FaquantError

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
MISTRAL = {**LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 64}
SMOLLM3 = {**LLAMA, "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3"}
GEMMA3 = {
    **{key: value for key, value in LLAMA.items() if key not in ("hidden_act", "rope_theta")},
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "head_dim": 64,
    "query_pre_attn_scalar": 256,
    "num_hidden_layers": 7,
    "sliding_window": 128,
}
OLMO3 = {**LLAMA, "architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3", "rope_theta": 500000.0}
PHI3 = {**LLAMA, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
GRANITE = {
    **LLAMA,
    "architectures": ["GraniteForCausalLM"],
    "model_type": "granite",
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.0625,
    "residual_multiplier": 0.25,
    "logits_scaling": 8.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
WINDOWED = {"use_sliding_window": True, "sliding_window": 128}

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "dtype": "bfloat16",
}
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
}
"""Of Llama 3.1, as far as sizes depend on it."""


def write_config(config: dict[str, Any], directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")


def error_of(raw: dict[str, Any], kind: type[FaquantError] = CheckpointError) -> str:
    """The message of the one error that this content raises."""
    with pytest.raises(kind) as caught:
        parse_config(raw, "models/x/config.json")
    message = str(caught.value)
    assert message.startswith("models/x/config.json")
    assert "\n" not in message
    assert len(message) < 400
    return message
