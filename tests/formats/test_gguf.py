import contextlib
import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from faquant.checkpoint.model_config import load_config
from faquant.errors import CheckpointError, FaquantError, OutputError, UnsupportedError
from faquant.formats.gguf.convert import convert_gguf
from faquant.model.rope import Rope
from oracles.gguf_files import (
    BF16,
    F16,
    Q8_0,
    SIZES,
    gguf_tensors,
    llama_file,
    logits,
    model_metadata,
    tiny_model,
    write,
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
    ],
)
def test_converted_model_is_the_original(tmp_path, tokens, kind, arch, changes):
    original = tiny_model(kind, **changes)
    metadata = model_metadata(original.config, arch) | tokens
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
    assert (config.rope.theta, config.rms_norm_eps, config.max_position) == (5000.0, 1e-5, 128)
    assert (config.bos_token_id, config.eos_token_ids, config.dtype) == (1, (2,), "float32")
    assert config.head_dim == 32
    assert config.tie_word_embeddings == changes.get("tie_word_embeddings", False)
    assert config.sliding_windows == (changes.get("sliding_window"),) * 2


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


def yarn(**keys):
    """Metadata of YaRN by 4, as llama.cpp's converter writes it."""
    return {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32,
    } | {f"llama.rope.scaling.{key}": value for key, value in keys.items()}


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


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"metadata": {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}}, "U", "longrope"),
        ({"metadata": {key: yarn()[key] for key in list(yarn())[:2]}}, "C", "original_context_length"),
        ({"metadata": yarn(yarn_ext_factor=0.0)}, "U", "yarn_ext_factor"),
        ({"metadata": yarn(type="linear", yarn_ext_factor=1.0)}, "U", "yarn_ext_factor"),
        ({"metadata": yarn(yarn_log_multiplier=0.1)}, "U", "yarn_log_multiplier"),
        ({"metadata": yarn(type="linear", yarn_attn_factor=0.8)}, "U", "magnitude 0.8"),
        ({"metadata": yarn(yarn_attn_factor=0.0)}, "C", "yarn_attn_factor must be a positive number"),
        ({"metadata": {"llama.rope.scaling.attn_factor": 2.0}}, "U", "magnitude"),
        ({"metadata": {"llama.rope.dimension_count": 16}}, "U", "all 32 channels"),
        ({"metadata": {"llama.attention.value_length": 16}}, "U", "different lengths"),
        ({"metadata": {"llama.expert_count": 8}}, "U", "expert_count"),
        ({"metadata": {"llama.attention.causal": False}}, "U", "causal"),
        ({"metadata": {"llama.attention.head_count": [4, 2]}}, "U", "differs between layers"),
        ({"metadata": {"llama.embedding_length": 0}}, "C", "positive whole number"),
        ({"metadata": {"llama.block_count": 1 << 30}}, "C", "blk.2.attn_norm"),
        ({"metadata": {"llama.attention.layer_norm_rms_epsilon": float("nan")}}, "C", "epsilon"),
        ({"metadata": {"llama.block_count": 1}}, "U", "tensors that a plain"),
        ({"metadata": {"general.alignment": 48}}, "C", "power of two"),
        ({"metadata": {"tokenizer.ggml.eos_token_id": 300}}, "C", "eos_token_id"),
        ({"metadata": {"tokenizer.ggml.pre": "klingon"}}, "U", "klingon"),
        ({"metadata": {"tokenizer.ggml.model": "t5"}}, "U", "t5"),
        ({"metadata": {"tokenizer.ggml.merges": ["q zz"]}}, "C", "merge"),
        ({"metadata": {"tokenizer.ggml.tokens": ["a"] * 300}}, "C", "duplicates"),
        ({"metadata": {"tokenizer.ggml.token_type": [1]}}, "C", "token_type"),
        ({"tensors": {"blk.0.ffn_gate_exps.weight": np.ones((2, 32))}}, "U", "ffn_gate_exps"),
        ({"tensors": {"blk.0.attn_q.weight": np.ones((4, 32))}}, "C", "shape"),
        ({"tensors": {"output_norm.weight": np.full(64, np.nan)}}, "C", "output_norm.*finite"),
        ({"drop": ["blk.1.ffn_up.weight"]}, "C", "blk.1.ffn_up"),
        ({"drop": ["token_embd.weight"]}, "C", "token_embd"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path, llama, tokens, change, error, words):
    path = llama_file(tmp_path, llama, tokens, **change)
    with pytest.raises({"U": UnsupportedError, "C": CheckpointError}[error], match=words) as caught:
        convert_gguf(path, tmp_path / "out")
    assert "model.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]


def test_float16_overflow_is_refused(tmp_path, llama, tokens):
    path = llama_file(tmp_path, llama, tokens, tensors={"output_norm.weight": np.full(64, 1e6)})
    with pytest.raises(UnsupportedError, match="does not fit into float16"):
        convert_gguf(path, tmp_path / "out", "float16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arch", ["gpt2", "gemma3", "phi3", "mistral"])
def test_other_architectures_are_refused(tmp_path, tokens, arch):
    path = write(tmp_path / "model.gguf", arch, tokens, {"a": np.ones(4)})
    with pytest.raises(UnsupportedError, match=arch):
        convert_gguf(path, tmp_path / "out")


def test_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="int4"):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "out", "int4")


def test_existing_output_is_kept(tmp_path, llama, tokens):
    path = llama_file(tmp_path, llama, tokens)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        convert_gguf(path, tmp_path / "out")
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["mine"]


def test_interruption_leaves_nothing(tmp_path, llama, tokens):
    path = llama_file(tmp_path, llama, tokens)

    def interrupt(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_gguf(path, tmp_path / "out", progress=interrupt)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]


def test_full_disk_leaves_nothing(tmp_path, llama, tokens, monkeypatch):
    path = llama_file(tmp_path, llama, tokens)

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OutputError, match="No space left"):
        convert_gguf(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        convert_gguf(tmp_path / "none.gguf", tmp_path / "out")
    with pytest.raises(CheckpointError, match="not a regular file"):
        convert_gguf(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"PK\x03\x04", "begins with"),
        (b"GGUF" + struct.pack("<I", 1), "version 1"),
        (b"GGUF" + struct.pack(">I", 3), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0), "claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 63), "ends too early"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 8, 1 << 60), "ends too early"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 10, 1 << 61), "ends too early"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 9, 1), "array type"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sI", 1, b"k", 77), "value type"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1s", 1, b"\xff"), "UTF-8"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q1sI", 1, b"t", 1 << 31), "dimensions"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q1sIQQIQ", 1, b"t", 2, 1 << 63, 1 << 63, 0, 0),
            "ends too early",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q1sIQIQ", 1, b"t", 1, 4, 0, 1 << 63), "ends too early"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q1sIQIQ", 1, b"t", 1, 31, 8, 0),
            "divisible into blocks",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q1sIQIQ", 1, b"t", 1, 31, 999, 0), "quantization"),
    ],
)
def test_hostile_headers(tmp_path, start, words):
    path = tmp_path / "model.gguf"
    path.write_bytes(start + bytes(64))
    with pytest.raises(FaquantError, match=words):
        convert_gguf(path, tmp_path / "out")


def test_truncated_anywhere(tmp_path, llama, tokens):
    path = llama_file(tmp_path, llama, tokens)
    data = path.read_bytes()
    for length in [*range(0, 400, 7), *range(400, len(data), len(data) // 97), len(data) - 33]:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            convert_gguf(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_is_an_error_of_ours_or_none(tmp_path, llama, tokens, changes):
    original = tmp_path / "model.gguf"
    data = bytearray((original if original.exists() else llama_file(tmp_path, llama, tokens)).read_bytes())
    for at, value in changes:
        data[at] = value
    (tmp_path / "damaged.gguf").write_bytes(data)
    with contextlib.suppress(FaquantError):
        convert_gguf(tmp_path / "damaged.gguf", tmp_path / "out")
    if (tmp_path / "out").exists():
        for entry in (tmp_path / "out").iterdir():
            entry.unlink()
