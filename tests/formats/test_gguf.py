"""Converted GGUF files have the tensors of the original model."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from faquant.checkpoint.model_config import load_config
from faquant.errors import UnsupportedError
from faquant.formats.gguf.convert import convert_gguf
from oracles.gguf_files import (
    BF16,
    F16,
    Q8_0,
    gguf_tensors,
    llama_file,
    logits,
    model_metadata,
    tiny_model,
    write,
)

MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.4,
    "residual_multiplier": 0.22,
    "logits_scaling": 3.0,
}
GRANITE_KEYS = (
    "granite.embedding_scale",
    "granite.attention.scale",
    "granite.residual_scale",
    "granite.logit_scale",
)


@pytest.mark.parametrize(
    ("kind", "arch", "changes"),
    [
        (LlamaConfig, "llama", {}),
        (LlamaConfig, "llama", {"tie_word_embeddings": True}),
        (LlamaConfig, "llama", {"attention_bias": True, "mlp_bias": True}),
        (MistralConfig, "llama", {"sliding_window": 8}),
        (Qwen2Config, "qwen2", {}),
        (Qwen2Config, "qwen2", {"tie_word_embeddings": True}),
        (Qwen3Config, "qwen3", {"tie_word_embeddings": True}),
        (SmolLM3Config, "smollm3", {"tie_word_embeddings": True, "num_hidden_layers": 4, "pad_token_id": 2}),
        (SmolLM3Config, "smollm3", {"attention_bias": True, "tie_word_embeddings": False, "pad_token_id": 2}),
        (Olmo2Config, "olmo2", {"pad_token_id": 2, "attention_bias": True}),
        (GraniteConfig, "granite", MULTIPLIERS),
        (GraniteConfig, "granite", {**MULTIPLIERS, "attention_bias": True, "mlp_bias": True}),
    ],
)
def test_converted_model_is_the_original(tmp_path, tokens, kind, arch, changes):
    original = tiny_model(kind, **changes)
    metadata = model_metadata(original.config, arch) | tokens
    if arch == "granite":
        metadata |= dict(zip(GRANITE_KEYS, MULTIPLIERS.values(), strict=True))
    if "sliding_window" in changes:
        metadata["llama.attention.sliding_window"] = changes["sliding_window"]
    path = write(tmp_path / "model.gguf", arch, metadata, gguf_tensors(original))
    convert_gguf(path, tmp_path / "out")

    converted, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(converted) is type(original)
    for name, value in original.state_dict().items():
        assert torch.equal(converted.state_dict()[name], value), name
    assert torch.equal(logits(converted), logits(original))
    config = load_config(tmp_path / "out")
    assert (config.rope.theta, config.max_position) == (5000.0, 128)
    assert config.rms_norm_eps == pytest.approx(1e-5 / changes.get("residual_multiplier", 1.0) ** 2)
    assert (config.bos_token_id, config.eos_token_ids, config.dtype) == (1, (2,), "float32")
    assert config.head_dim == 32
    assert config.tie_word_embeddings == changes.get("tie_word_embeddings", False)
    assert config.sliding_windows == (changes.get("sliding_window"),) * original.config.num_hidden_layers


def test_olmo3_is_the_original(tmp_path, tokens):
    """Its converter writes the windows of layers as a pattern, and YaRN's attention_factor as attn_factor."""
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "attention_factor": 1.2079441}
    plain = {"rope_type": "default", "rope_theta": 5000.0}
    original = tiny_model(
        Olmo3Config,
        num_hidden_layers=4,
        sliding_window=8,
        pad_token_id=2,
        rope_parameters={"full_attention": {**yarn, "rope_theta": 5000.0}, "sliding_attention": plain},
    )
    metadata = model_metadata(original.config, "olmo2") | tokens
    metadata |= {
        "olmo2.attention.sliding_window": 8,
        "olmo2.attention.sliding_window_pattern": [True, True, True, False],
        "olmo2.rope.scaling.type": "yarn",
        "olmo2.rope.scaling.factor": 8.0,
        "olmo2.rope.scaling.original_context_length": 16,
        "olmo2.rope.scaling.attn_factor": 1.2079441,
    }
    convert_gguf(write(tmp_path / "model.gguf", "olmo2", metadata, gguf_tensors(original)), tmp_path / "out")
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(converted) is type(original)
    assert torch.equal(logits(converted), logits(original))
    config = load_config(tmp_path / "out")
    assert config.sliding_windows == (8, 8, 8, None)
    assert [rope.rope_type for rope in config.ropes] == ["yarn", "default"]
    metadata["olmo2.attention.sliding_window_pattern"] = [True, False]
    with pytest.raises(UnsupportedError, match="sliding_window_pattern must say for each of the 4 layers"):
        convert_gguf(write(tmp_path / "bad.gguf", "olmo2", metadata, gguf_tensors(original)), tmp_path / "bad")


@pytest.mark.parametrize("layers", [7, 62])
def test_gemma3_is_the_original(tmp_path, tokens, layers):
    """The converter adds 1 to norms. What the file does not say is in llama.cpp: the pattern of windows, the local base
    of RoPE, and that the model of 62 layers scales q by hidden_size over heads."""
    rope = {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0}
    original = tiny_model(
        Gemma3TextConfig,
        num_hidden_layers=layers,
        sliding_window=8,
        pad_token_id=2,
        query_pre_attn_scalar=32 if layers == 7 else 16,
        rope_parameters={"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
    )
    metadata = model_metadata(original.config, "gemma3") | tokens
    metadata |= {"gemma3.attention.sliding_window": 8, "gemma3.rope.scaling.type": "linear"}
    metadata["gemma3.rope.scaling.factor"] = 8.0
    convert_gguf(write(tmp_path / "model.gguf", "gemma3", metadata, gguf_tensors(original)), tmp_path / "out")
    converted, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in original.state_dict().items():
        torch.testing.assert_close(converted.state_dict()[name], value, rtol=0, atol=1e-6, msg=name)
    torch.testing.assert_close(logits(converted), logits(original), rtol=0, atol=1e-2 if layers == 62 else 1e-4)
    assert load_config(tmp_path / "out").sliding_windows[:7] == (8, 8, 8, 8, 8, None, 8)
    assert load_config(tmp_path / "out").max_position == 128


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 5000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    "long_factor": [1.0, 1.5, 3.0, 6.0, 7.0, 8.0],
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 8}, {"rope_parameters": LONGROPE}], ids=str)
@pytest.mark.parametrize("attention_factor", [None, 1.25])
def test_phi3_is_the_original(tmp_path, tokens, changes, attention_factor):
    """With fused weights, and the divisors of RoPE's frequencies as tensors."""
    fields = {"original_max_position_embeddings": 16, "pad_token_id": 2, "head_dim": 16, **changes}
    if "rope_parameters" in changes:
        fields["rope_parameters"] = {**LONGROPE, "attention_factor": attention_factor}
    original = tiny_model(Phi3Config, **fields)
    config = original.config
    own = math.sqrt(1 + math.log(128 / 16) / math.log(16))
    metadata = model_metadata(config, "phi3") | tokens
    for length in ("attention.key_length", "attention.value_length"):
        del metadata[f"phi3.{length}"]
    metadata |= {
        "phi3.attention.sliding_window": changes.get("sliding_window", 0),
        "phi3.rope.dimension_count": 12 if "rope_parameters" in changes else 16,
        "phi3.rope.scaling.original_context_length": 16,
    }
    extra = {}
    if "rope_parameters" in changes:
        metadata["phi3.rope.scaling.attn_factor"] = own if attention_factor is None else attention_factor
        extra = {f"rope_factors_{kind}.weight": np.array(LONGROPE[f"{kind}_factor"]) for kind in ("short", "long")}
    convert_gguf(write(tmp_path / "model.gguf", "phi3", metadata, gguf_tensors(original) | extra), tmp_path / "out")
    converted, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(converted), logits(original))
    assert load_config(tmp_path / "out").sliding_windows == (changes.get("sliding_window"),) * 2


@pytest.mark.parametrize("stored", [F16, BF16])
def test_half_precision_is_widened_exactly(tmp_path, llama, tokens, stored):
    torch_dtype = torch.float16 if stored == F16 else torch.bfloat16
    kinds = {name: stored for name, array in gguf_tensors(llama).items() if array.ndim == 2}
    convert_gguf(llama_file(tmp_path, llama, tokens, kinds=kinds), tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in llama.state_dict().items():
        assert torch.equal(weights[name], value.to(torch_dtype).float() if value.ndim == 2 else value), name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_output_dtype_rounds_once(tmp_path, llama, tokens, dtype):
    convert_gguf(llama_file(tmp_path, llama, tokens), tmp_path / "out", dtype)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in llama.state_dict().items():
        assert torch.equal(weights[name], value.to(getattr(torch, dtype))), name
    assert load_config(tmp_path / "out").dtype == dtype


def test_q8_0_blocks(tmp_path, llama, tokens):
    """Against the format's definition: 32 int8 values times one float16 scale, amax / 127."""
    kinds = {name: Q8_0 for name, array in gguf_tensors(llama).items() if array.ndim == 2}
    convert_gguf(llama_file(tmp_path, llama, tokens, kinds=kinds), tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in llama.state_dict().items():
        if value.ndim == 2:
            blocks = value.reshape(-1, 32)
            exact = blocks.abs().amax(1, keepdim=True) / 127
            expected = torch.round(blocks / exact) * exact.half().float()
            assert torch.allclose(weights[name], expected.reshape(value.shape), rtol=1e-6, atol=0), name


def test_large_tensors_are_read_in_pieces(tmp_path, llama, tokens, monkeypatch):
    monkeypatch.setattr("faquant.formats.gguf.tensors.CHUNK_ELEMENTS", 200)
    seen = []
    convert_gguf(llama_file(tmp_path, llama, tokens), tmp_path / "out", progress=lambda *counts: seen.append(counts))
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in llama.state_dict().items())
    assert seen == [(count, len(weights)) for count in range(1, len(weights) + 1)]
