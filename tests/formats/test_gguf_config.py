"""The configuration from a GGUF file's metadata: RoPE, defaults, and what the file cannot tell."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from faquant.checkpoint.model_config import load_config
from faquant.errors import UnsupportedError
from faquant.formats.gguf.convert import convert_gguf
from faquant.model.rope import Rope
from oracles.gguf_files import (
    SIZES,
    gguf_tensors,
    llama_file,
    logits,
    model_metadata,
    tiny_model,
    write,
    yarn,
)


def llama3_config(**changes):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return LlamaConfig(**SIZES | {"rope_parameters": rope | changes})


def divisors(config):
    """As llama.cpp's converter computes rope_freqs.weight: plain frequencies over scaled ones."""
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 5000.0 ** (-torch.arange(0, 32, 2) / 32)
    return (plain / scaled).numpy()


def rope_of(directory):
    raw = json.loads((directory / "config.json").read_text())
    assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"]
    return raw["rope_parameters"]


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rope_is_recovered(tmp_path, llama, tokens, factor):
    extra = {"llama.rope.scaling.original_context_length": 2048}
    config = llama3_config(factor=factor, original_max_position_embeddings=2048)
    path = llama_file(tmp_path, llama, tokens, extra, {"rope_freqs.weight": divisors(config)})
    convert_gguf(path, tmp_path / "out")
    rope = rope_of(tmp_path / "out")
    assert rope.pop("factor") == pytest.approx(factor, rel=1e-5)
    assert rope == {key: value for key, value in config.rope_parameters.items() if key != "factor"}


def test_rope_divisors_of_one_are_none(tmp_path, llama, tokens):
    path = llama_file(tmp_path, llama, tokens, tensors={"rope_freqs.weight": np.ones(16)})
    convert_gguf(path, tmp_path / "out")
    assert rope_of(tmp_path / "out") == {"rope_type": "default", "rope_theta": 5000.0}


@pytest.mark.parametrize("values", [np.linspace(1, 8, 16), np.full(16, 2.0), np.ones(15), np.full(16, -1.0)])
def test_other_rope_divisors_are_refused(tmp_path, llama, tokens, values):
    path = llama_file(tmp_path, llama, tokens, tensors={"rope_freqs.weight": values})
    with pytest.raises(UnsupportedError, match="rope_freqs"):
        convert_gguf(path, tmp_path / "out")


OWN = 0.1 * np.log(4) + 1  # YaRN's own magnitude
YARN = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"llama.rope.scaling.type": "none"}, {"rope_type": "default"}),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}, {"rope_type": "linear", "factor": 2}),
        ({"llama.rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2}),
        ({"llama.rope.scaling.yarn_attn_factor": 1.0}, {"rope_type": "default"}),
        (yarn(), YARN),
        (yarn(yarn_ext_factor=1.0), YARN),
        (yarn(attn_factor=1.0), YARN),
        (yarn(yarn_attn_factor=1.0), {**YARN, "attention_factor": 1.0}),
        (yarn(yarn_attn_factor=0.8), {**YARN, "attention_factor": 0.8}),
        (yarn(attn_factor=2.0), {**YARN, "attention_factor": pytest.approx(2 * OWN)}),
        (yarn(attn_factor=float(np.float32(1.5 / OWN))), {**YARN, "attention_factor": 1.5}),
        (yarn(attn_factor=2.0, yarn_attn_factor=0.8), {**YARN, "attention_factor": 1.6}),
        (yarn(factor=1.0), {"rope_type": "default"}),
        (yarn(factor=1.0, yarn_attn_factor=1.0), {"rope_type": "default"}),
        (yarn(factor=1.0, yarn_attn_factor=0.8), {**YARN, "factor": 1.0, "attention_factor": 0.8}),
        (yarn(yarn_beta_fast=16.0, yarn_beta_slow=2.0), {**YARN, "beta_fast": 16.0, "beta_slow": 2.0}),
    ],
)
def test_rope_scaling(tmp_path, llama, tokens, metadata, expected):
    convert_gguf(llama_file(tmp_path, llama, tokens, metadata), tmp_path / "out")
    assert rope_of(tmp_path / "out") == {"rope_theta": 5000.0} | expected
    assert load_config(tmp_path / "out").rope.rope_type == expected["rope_type"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("attention_factor", [None, 1.0, 0.8])
def test_a_model_with_yarn_is_the_original(tmp_path, tokens, attention_factor):
    """The file has what llama.cpp's converter writes: attention_factor as yarn_attn_factor, if config.json has it."""
    rope = {**YARN, "rope_theta": 5000.0, "attention_factor": attention_factor}
    original = tiny_model(rope_parameters=rope)
    metadata = yarn() if attention_factor is None else yarn(yarn_attn_factor=attention_factor)
    convert_gguf(llama_file(tmp_path, original, tokens, metadata), tmp_path / "out")
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(converted), logits(original))
    plain = tiny_model(rope_parameters={**rope, "attention_factor": 0.9})
    assert not torch.allclose(logits(plain), logits(original), atol=1e-3), "the factor makes a difference"
    ours = Rope(load_config(tmp_path / "out"))
    assert ours.scaling == pytest.approx(attention_factor or OWN)


DYNAMIC = "rope_scaling of type dynamic"


@pytest.mark.parametrize(
    ("kind", "arch", "metadata", "expected"),
    [
        (LlamaConfig, "llama", {}, ["sliding_window (of Mistral)", "no_rope_layers", DYNAMIC]),
        (MistralConfig, "llama", {"llama.attention.sliding_window": 8}, [DYNAMIC]),
        (Qwen2Config, "qwen2", {}, ["use_sliding_window", "dual_chunk_attention_config", DYNAMIC]),
        (
            LlamaConfig,
            "llama",
            yarn(),
            ["sliding_window (of Mistral)", "no_rope_layers", "truncate", "mscale", "mscale_all_dim"],
        ),
        (LlamaConfig, "llama", yarn(yarn_attn_factor=0.8) | {"llama.attention.sliding_window": 8}, ["truncate"]),
    ],
)
def test_what_a_file_cannot_tell_is_named(tmp_path, tokens, kind, arch, metadata, expected):
    model = tiny_model(kind)
    metadata = model_metadata(model.config, arch) | tokens | metadata
    path = write(tmp_path / "model.gguf", arch, metadata, gguf_tensors(model))
    assert convert_gguf(path, tmp_path / "out") == expected


def test_llama_3_1_leaves_nothing_open(tmp_path, llama, tokens):
    assert (
        convert_gguf(
            llama_file(tmp_path, llama, tokens, {}, {"rope_freqs.weight": divisors(llama3_config())}), tmp_path / "out"
        )
        == []
    )


def test_missing_keys_have_the_formats_defaults(tmp_path, llama, tokens):
    model = tiny_model(head_dim=16, num_key_value_heads=4)
    metadata = model_metadata(model.config, "llama") | tokens
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base"):
        del metadata[f"llama.{key}"]
    del metadata["llama.attention.head_count_kv"], metadata["llama.vocab_size"]
    convert_gguf(write(tmp_path / "m.gguf", "llama", metadata, gguf_tensors(model)), tmp_path / "out")
    config = load_config(tmp_path / "out")
    assert (config.head_dim, config.num_kv_heads, config.rope.theta) == (16, 4, 10000.0)
