"""GGUF files for llama.cpp, read back by faquant's own reader; benchmarks/gguf_export.py runs them in llama.cpp."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers

from faquant import api
from faquant.checkpoint.model_config import load_config
from faquant.cli.main import run
from faquant.errors import CheckpointError, OutputError, UnsupportedError
from faquant.evaluation.divergence import window_logits
from faquant.formats import open_checkpoint
from faquant.formats.gguf.convert import convert_gguf
from faquant.formats.gguf.reader import read_gguf
from faquant.formats.gguf.write import model_metadata
from faquant.formats.gguf.write_tokenizer import PROBES, tokenizer_metadata
from faquant.kernels.tables import DynamicTable
from faquant.model.load import load
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES, Recipe
from faquant.text.tokenizer import Tokenizer
from oracles.gguf_files import TEMPLATE, TEXT, trained
from oracles.interop import divergence
from oracles.tiny_models import tiny_model
from oracles.tokenizer_kinds import byte_fallback

IDS = [int(i) for i in torch.randint(3, 300, (60,), generator=torch.Generator().manual_seed(1))]
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
ROPES = {
    "yarn": YARN,
    "yarn-attention-factor": {**YARN, "attention_factor": 1.5},
    "yarn-attention-factor-1": {**YARN, "attention_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
}


def _write_tokenizer(directory: Path, backend: Backend, **settings: Any) -> None:
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def _model(kind: str, folder: Path, recipe: Recipe = RECIPES["portable"], **changes: Any) -> Path:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    if kind == "llama3":
        sizes["num_attention_heads"] = 8
    settings = {**sizes, "bos_token_id": 1, "eos_token_id": 2, **changes}
    tiny_model(kind, folder / "float", **settings)
    _write_tokenizer(folder / "float", trained(), chat_template=TEMPLATE, eos_token="<|im_end|>")
    quantize(folder / "float", folder / "source", recipe, [IDS, IDS[::-1]])
    return folder / "source"


def _check_same(source: Path, back: Path) -> None:
    """The integers are kept, scales are those of Q8_0 in float16, and floats are rounded to Q8_0."""
    before, after = open_checkpoint(source), open_checkpoint(back)
    for name, size in before.config.linears.items():
        table, found = before.linear(name), after.linear(name)
        if isinstance(table, DynamicTable):
            exact = table.weight * table.scale.astype(np.float16).astype(np.float32)[:, None]
            assert np.array_equal(found.weight, exact), name
        else:
            largest = np.abs(np.asarray(table.weight)).max()
            assert np.abs(np.asarray(table.weight) - found.weight).max() <= (0.5 + 127 * 2**-11) * largest / 127, name
        assert not size.has_bias or np.array_equal(table.bias, found.bias), name
    ours, theirs = load_config(source), load_config(back)
    assert (ours.rope, ours.max_position, ours.eos_token_ids) == (
        theirs.rope,
        theirs.max_position,
        theirs.eos_token_ids,
    )
    # Without the rounding of inputs, q, K and V, the file is closer to the float model.
    paths = source.with_name("float"), back, source
    exact, found, rounded = (torch.as_tensor(window_logits(load(path), torch.tensor(IDS))) for path in paths)
    assert divergence(exact, found) < divergence(exact, rounded)
    ours_tokens, theirs_tokens = (Tokenizer.from_directory(path) for path in (source, back))
    for text in (*PROBES, TEXT, "<|im_start|>user\nhi<|im_end|>"):
        assert ours_tokens.encode(text) == theirs_tokens.encode(text)
    assert ours_tokens.chat_templates == theirs_tokens.chat_templates == {"default": TEMPLATE}


@pytest.mark.parametrize("kind", ["llama3", "smollm", "llama-bias", "mistral", "qwen2", "qwen3"])
def test_portable_is_read_back_as_the_same_model(kind: str, tmp_path: Path) -> None:
    source = _model(kind, tmp_path)
    notes = api.export_gguf(source, tmp_path / "model.gguf")
    assert any(note.startswith("The tables of K, V and q are left out") for note in notes)
    convert_gguf(tmp_path / "model.gguf", tmp_path / "back")
    _check_same(source, tmp_path / "back")


@pytest.mark.parametrize("rope", ROPES)
def test_rope_is_carried(rope: str, tmp_path: Path) -> None:
    source = _model("llama2", tmp_path, rope_parameters=ROPES[rope])
    api.export_gguf(source, tmp_path / "model.gguf")
    convert_gguf(tmp_path / "model.gguf", tmp_path / "back")
    _check_same(source, tmp_path / "back")


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({}, 512),
        ({"rope_parameters": ROPES["linear"]}, 1024),
        ({"rope_parameters": ROPES["yarn"]}, 512),
        ({"rope_parameters": {**YARN, "factor": 8.0}}, 1024),
        ({"dual_chunk_attention_config": {"original_max_position_embeddings": 256}}, 256),
    ],
)
def test_the_context_is_what_faquant_allows(changes: dict[str, Any], context: int, tmp_path: Path) -> None:
    source = _model("qwen2", tmp_path, max_position_embeddings=512, **changes)
    api.export_gguf(source, tmp_path / "model.gguf")
    assert read_gguf(tmp_path / "model.gguf").metadata["qwen2.context_length"] == context
    convert_gguf(tmp_path / "model.gguf", tmp_path / "back")
    assert load_config(source).max_position == load_config(tmp_path / "back").max_position == context


@pytest.mark.parametrize(
    ("attention_factor", "multiplier"), [(None, None), (1.5, 1.5 / (1 + 0.1 * np.log(4))), (1 + 0.1 * np.log(4), None)]
)
def test_llama_cpp_multiplies_the_magnitude_of_yarn(
    attention_factor: float | None, multiplier: float | None, tmp_path: Path
) -> None:
    """llama.cpp reads attn_factor, and for these architectures no key of yarn_*: measured with llama-cpp-python."""
    source = _model("llama2", tmp_path, rope_parameters={**YARN, "attention_factor": attention_factor})
    metadata = model_metadata(load_config(source))
    assert metadata.get("llama.rope.scaling.attn_factor") == (multiplier and pytest.approx(multiplier))
    assert not any("yarn_" in key for key in metadata)


@pytest.mark.parametrize(
    ("kind", "recipe", "changes", "reasons"),
    [
        ("smollm", "default", {}, ("rotated at run time, which llama.cpp", "zero points per token, and llama.cpp's")),
        ("smollm3", "portable", {}, ("not smollm3",)),
        ("smollm", "attention-only", {}, ("its linears are float",)),
        ("smollm", "portable", {"intermediate_size": 112}, ("has 112 inputs, and Q8_0 has blocks of 32",)),
        ("mistral-window", "portable", {}, ("no sliding window",)),
        ("qwen3-bias", "portable", {}, ("qwen3 has no biases",)),
        ("llama2", "portable", {"rope_parameters": {**ROPES["linear"], "rope_type": "dynamic"}}, ("of type dynamic",)),
        ("llama2", "portable", {"rope_parameters": {**YARN, "mscale": 0.7}}, ("mscale",)),
        ("llama2", "portable", {"rope_parameters": {**YARN, "attention_factor": 0.0}}, ("no attention_factor 0",)),
        ("llama2", "portable", {"rope_parameters": {**YARN, "beta_fast": 24.0}}, ("beta_slow 1, not 24 and 1",)),
        ("llama2", "portable", {"rope_parameters": {**YARN, "beta_slow": 2.0}}, ("beta_slow 1, not 32 and 2",)),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused_and_nothing_is_written(
    kind: str, recipe: str, changes: dict[str, Any], reasons: tuple[str, ...], tmp_path: Path
) -> None:
    source = _model(kind, tmp_path, RECIPES[recipe], **changes)
    with pytest.raises(UnsupportedError) as refused:
        api.export_gguf(source, tmp_path / "model.gguf")
    message = str(refused.value)
    assert all(reason in message for reason in reasons)
    # Another recipe is advised where the recipe is all that stands in the way.
    assert ("--recipe portable" in message) == (recipe != "portable")
    assert "\n" not in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float", "source"]


@pytest.mark.parametrize("scale", [1e-8, 3e-6, 1e-5, 6e4, 1e6])
def test_scales_that_float16_cannot_hold_are_refused(scale: float, tmp_path: Path) -> None:
    """Below 2**-17 float16 is off by more than 1/256, and below 2**-25 a row would become zeros."""
    source = _model("llama2", tmp_path)
    (path,) = source.glob("*.safetensors")
    name, tensors = "model.layers.1.self_attn.k_proj", load_file(path)
    tensors[f"{name}.weight_scale"][3] = scale
    tensors[f"{name}.weight"][2] = 0
    tensors[f"{name}.weight_scale"][2] = 1e-8  # of a row of zeros, so it has no effect
    save_file(tensors, path)
    if scale in (1e-5, 6e4):
        api.export_gguf(source, tmp_path / "model.gguf")
        convert_gguf(tmp_path / "model.gguf", tmp_path / "back")
        row = open_checkpoint(tmp_path / "back").linear(name).weight[3]
        np.testing.assert_allclose(row, tensors[f"{name}.weight"][3].numpy() * scale, rtol=2**-8)
        return
    with pytest.raises(UnsupportedError, match=rf"{name} cannot .* row 3 has the scale .* \(1 of 32 rows\)"):
        api.export_gguf(source, tmp_path / "model.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float", "source"]


def test_what_exists_is_kept_and_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = _model("smollm", tmp_path), tmp_path / "model.gguf"
    (tmp_path / "directory").mkdir()
    with pytest.raises(OutputError, match="is a directory"):
        api.export_gguf(source, tmp_path / "directory")
    arguments = ["convert", str(source), "--to", "gguf", "-o", str(out)]
    assert run(arguments) == 0
    kept = out.read_bytes()
    assert run(arguments) == 1
    assert f"{out} exists" in capsys.readouterr().err

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left on device"):
            api.export_gguf(source, out, overwrite=True)
    assert out.read_bytes() == kept
    assert run([*arguments, "--overwrite"]) == 0
    assert out.read_bytes() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "float", "model.gguf", "source"]


def test_only_gguf_files_are_overwritten_and_nothing_in_the_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _model("smollm", tmp_path)
    link = tmp_path / "link"
    link.symlink_to(source)
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    (tmp_path / "empty.gguf").touch()
    (shard,) = source.glob("*.safetensors")
    other = shutil.copy(shard, tmp_path / "other.safetensors")
    capsys.readouterr()

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = content()
    for target, reason in (
        (shard, "is in the source"),
        (source / "config.json", "is in the source"),
        (source / "model.gguf", "is in the source"),
        (link / "below" / "model.gguf", "is in the source"),
        (other, "is not a GGUF file"),
        (notes, "is not a GGUF file"),
        (tmp_path / "empty.gguf", "is not a GGUF file"),
    ):
        assert run(["convert", str(source), "--to", "gguf", "-o", str(target), "--overwrite"]) == 1
        message = capsys.readouterr().err
        assert reason in message
        assert len(message.strip().splitlines()) == 1
        assert content() == before


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "qwen2", "tekken", "gpt-2"])
def test_the_rules_for_words_are_recognized(pre: str) -> None:
    metadata = tokenizer_metadata(trained(pre).to_str(), 310, None, [2], {}, "model")
    assert metadata["tokenizer.ggml.pre"] == pre
    assert len(metadata["tokenizer.ggml.tokens"]) == 310
    assert metadata["tokenizer.ggml.token_type"][300] == 5  # unused


def test_sentencepiece_and_its_begin_of_text() -> None:
    metadata = tokenizer_metadata(byte_fallback().to_str(), 320, 1, [2], {}, "model")
    assert (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.add_bos_token"]) == ("llama", True)
    assert metadata["tokenizer.ggml.unknown_token_id"] == 0


@pytest.mark.parametrize(("ends", "left"), [([2], ()), ([2, 5, 7], ()), ([2, 5, 7, 9, 11], (9, 11)), ([2, 999], ())])
def test_end_tokens_without_a_key_are_named(ends: list[int], left: tuple[int, ...], tmp_path: Path) -> None:
    """llama.cpp stops at eos, eot and eom. The embedding has 300 rows, so 999 cannot come."""
    source = _model("smollm", tmp_path, vocab_size=300)
    for name in ("config.json", "generation_config.json"):
        raw = json.loads((source / name).read_text()) if (source / name).exists() else {}
        (source / name).write_text(json.dumps({**raw, "eos_token_id": ends}))
    _write_tokenizer(source, trained())
    notes = [note for note in api.export_gguf(source, tmp_path / "model.gguf") if "which end an answer" in note]
    metadata = read_gguf(tmp_path / "model.gguf").metadata
    found = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    assert [index for index in found if index is not None] == [index for index in ends[:3] if index < 300]
    names = ", ".join(trained().id_to_token(index) for index in left)
    assert len(notes) == bool(left)
    assert all(f"too: {names}. llama.cpp" in note for note in notes)


def test_other_rules_and_too_many_tokens_are_refused() -> None:
    other = trained()
    other.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel()])
    with pytest.raises(UnsupportedError, match="splits text by rules"):
        tokenizer_metadata(other.to_str(), 300, None, [2], {}, "model")
    with pytest.raises(CheckpointError, match="embeddings for only 299 tokens"):
        tokenizer_metadata(trained().to_str(), 299, None, [2], {}, "model")


def test_named_templates(tmp_path: Path) -> None:
    templates = {"default": "a", "tool_use": "b"}
    metadata = tokenizer_metadata(trained().to_str(), 300, None, [2], templates, "model")
    assert metadata["tokenizer.chat_template"] == "a"
    assert metadata["tokenizer.chat_template.tool_use"] == "b"
    assert metadata["tokenizer.chat_templates"] == ["tool_use"]


def test_the_file_states_its_type(tmp_path: Path) -> None:
    api.export_gguf(_model("smollm", tmp_path), tmp_path / "model.gguf")
    metadata = read_gguf(tmp_path / "model.gguf").metadata
    assert (metadata["general.file_type"], metadata["general.name"]) == (7, "source")
