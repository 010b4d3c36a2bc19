"""GGUF files that cannot be converted, or not completely, are refused and leave no output."""

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faquant.errors import CheckpointError, FaquantError, OutputError, UnsupportedError
from faquant.formats.gguf.convert import convert_gguf
from oracles.gguf_files import (
    llama_file,
    write,
    yarn,
)


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


@pytest.mark.parametrize("arch", ["gpt2", "gemma2", "phi2", "mistral"])
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
