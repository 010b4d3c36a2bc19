"""Checkpoints for compressed-tensors, read back by us; tests/interop lets transformers compute them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from faquant.cli.main import run
from faquant.errors import OutputError, UnsupportedError
from faquant.evaluation.divergence import window_logits
from faquant.formats import open_checkpoint
from faquant.model.load import load
from faquant.quantization.exports.compressed_tensors import export_compressed_tensors
from faquant.quantization.mindie.convert import convert_to_mindie
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES, AttentionRecipe, LinearRecipe, Recipe
from oracles.interop import DATA, PROMPTS, TOKENS, divergence
from oracles.tiny_models import tiny_model


def _portable(folder: Path, kind: str = "llama3", dtype: str = "float32") -> Path:
    tiny_model(kind, folder / "float", dtype)
    vocabulary = json.loads((folder / "float" / "config.json").read_text())["vocab_size"]
    quantize(folder / "float", folder / "source", RECIPES["portable"], [[i % vocabulary for i in x] for x in PROMPTS])
    return folder / "source"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama3", "qwen2", "qwen3"])
def test_portable_is_read_back_with_a_scale_per_head(kind: str, dtype: str, tmp_path: Path) -> None:
    """K's and V's cover the same values as the scales per channel with their zero points."""
    source, out = _portable(tmp_path, kind, dtype), tmp_path / "out"
    notes = " ".join(export_compressed_tensors(source, out))
    assert all(word in notes for word in ("127.5 steps", "zero points", "greatest scale"))
    biased = "biases, " if kind == "qwen2" else ""
    assert (f"Rounded to bfloat16, the model's type: {biased}scales." in notes) == (dtype == "bfloat16")
    before, after = open_checkpoint(source), open_checkpoint(out)
    assert after.format == "compressed-tensors"
    assert after.linear_type("lm_head") == "FLOAT"
    for name in before.config.layer_linears:
        one, other = before.linear(name), after.linear(name)
        assert np.array_equal(one.weight, other.weight)
        assert (one.bias is None) == (other.bias is None)
        if kind == "qwen3" or not name.endswith(("q_proj", "k_proj")):
            assert np.array_equal(torch.tensor(one.scale).to(getattr(torch, dtype)).float().numpy(), other.scale)
    for layer, (ours, theirs) in enumerate(zip(before.schemes, after.schemes, strict=True)):
        assert ours is not None
        assert theirs is not None
        for part in "kv":
            scale, offset = (getattr(ours, f"{part}_{name}") for name in ("scale", "offset"))
            reach = np.maximum((127 - offset) * scale, (127 + offset) * scale)
            if part == "k":
                name = f"model.layers.{layer}.self_attn.k_proj"
                reach = reach * (after.linear(name).scale / before.linear(name).scale).reshape(reach.shape)
                pairs = reach.reshape(len(reach), 2, -1).max(1)
                assert kind == "qwen3" or (pairs > 0.98 * pairs.max(-1, keepdims=True)).all()
            found = getattr(theirs, f"{part}_scale")
            np.testing.assert_allclose(found[:, 0] * 127, reach.max(-1), rtol=2e-2 if dtype == "bfloat16" else 1e-5)
            assert getattr(theirs, f"{part}_offset") is None


@pytest.mark.parametrize("kind", ["llama3", "llama-bias", "qwen2"])
def test_the_factors_of_k_s_pairs_cancel_in_the_scores(kind: str, tmp_path: Path) -> None:
    source = _portable(tmp_path, kind)
    export_compressed_tensors(source, tmp_path / "int8")
    export_compressed_tensors(source, tmp_path / "none", kv_cache="none")
    linears: Any = [
        open_checkpoint(tmp_path / name).linear("model.layers.1.self_attn.k_proj") for name in ("int8", "none")
    ]
    assert (linears[0].scale > 1.2 * linears[1].scale).any()
    folded, plain = load(tmp_path / "int8"), load(tmp_path / "none")
    folded = replace(folded, schemes=[None] * folded.config.num_layers)
    ids = torch.tensor([token % plain.config.vocab_size for token in TOKENS])
    ours, theirs = (torch.as_tensor(window_logits(model, ids)) for model in (folded, plain))
    # But for inputs at a half step.
    assert divergence(theirs, ours) < 2e-4


def test_float32_norms_are_rounded_and_named(tmp_path: Path) -> None:
    """Of a model in 16 bits, norms that balance linears have 32."""
    tiny_model("llama3", tmp_path / "float", "bfloat16")
    recipe = Recipe(name="balanced", attention=None, linear=LinearRecipe(activation="token", rotate="none"))
    quantize(tmp_path / "float", tmp_path / "source", recipe, PROMPTS)
    notes = export_compressed_tensors(tmp_path / "source", tmp_path / "out", kv_cache="none")
    assert "Rounded to bfloat16, the model's type: norms, scales." in notes
    name = "model.layers.0.input_layernorm.weight"
    before, after = (load_file(next((tmp_path / x).glob("*.safetensors")))[name] for x in ("source", "out"))
    assert torch.equal(before.bfloat16(), after)
    assert not torch.equal(before, after.float())


def test_scales_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    source = _portable(tmp_path, dtype="float16")
    export_compressed_tensors(source, tmp_path / "out")
    (path,) = source.glob("*.safetensors")
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight_scale"][5] = 3e-6
    save_file(tensors, path)
    with pytest.raises(UnsupportedError, match="up_proj cannot be converted for compressed-tensors: row 5 has"):
        export_compressed_tensors(source, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float", "out", "source"]


def test_without_a_cache_only_the_linears_are_quantized(tmp_path: Path) -> None:
    source, out = _portable(tmp_path), tmp_path / "out"
    notes = export_compressed_tensors(source, out, kv_cache="none")
    assert any(note.startswith("The tables of K, V and q are left out") for note in notes)
    assert json.loads((out / "config.json").read_text())["quantization_config"]["kv_cache_scheme"] is None
    assert not any("self_attn.k_scale" in name for name in load_file(out / "model.safetensors"))
    after = open_checkpoint(out)
    assert not any(after.schemes)
    assert after.quant_type == "W8A8_DYNAMIC"


@pytest.mark.parametrize("name", ["llmc-w8a8-kv", "llmc-qwen2-w8a8-dyn", "autoround-w8a8"])
def test_what_the_tool_wrote_is_written_again(name: str, tmp_path: Path) -> None:
    cache: Any = "int8" if name == "llmc-w8a8-kv" else "none"
    export_compressed_tensors(DATA / name, tmp_path / "out", kv_cache=cache)
    theirs, ours = load_file(DATA / name / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert theirs.keys() == ours.keys()
    for key, tensor in theirs.items():
        assert torch.equal(tensor.float().expand_as(ours[key]), ours[key].float()), key


@pytest.mark.parametrize(
    ("recipe", "cache", "reasons"),
    [
        (RECIPES["default"], "int8", ("rotated at run time, which", "scale per token, and", "centered")),
        (RECIPES["default"], "none", ("rotated at run time, which",)),
        (RECIPES["attention-only"], "none", ("its linears are float",)),
        (RECIPES["mindie-plain"], "none", ("calibrated scales (W8A8)",)),
        (
            Recipe(
                name="wide",
                attention=AttentionRecipe(kv_scale="head"),
                linear=LinearRecipe(rotate="none", wide_inputs=("*",)),
            ),
            "none",
            ("inputs have 16 bits",),
        ),
    ],
    ids=lambda x: x.name if isinstance(x, Recipe) else None,
)
def test_what_cannot_be_expressed_is_refused_and_nothing_is_written(
    recipe: Recipe, cache: Any, reasons: tuple[str, ...], tmp_path: Path
) -> None:
    quantize(DATA / "float", tmp_path / "source", recipe, PROMPTS)
    with pytest.raises(UnsupportedError) as refused:
        export_compressed_tensors(tmp_path / "source", tmp_path / "out", kv_cache=cache)
    message = str(refused.value)
    assert all(reason in message for reason in reasons)
    assert message.endswith("Quantize the float model with --recipe portable instead.")
    assert "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_no_recipe_is_advised_for_other_families(tmp_path: Path) -> None:
    tiny_model("smollm3", tmp_path / "float")
    quantize(tmp_path / "float", tmp_path / "source", RECIPES["default"], PROMPTS)
    with pytest.raises(UnsupportedError, match=r"not smollm3; .*rotated at run time.* no recipe helps\.$") as refused:
        export_compressed_tensors(tmp_path / "source", tmp_path / "out")
    assert "portable" not in str(refused.value)


def test_an_existing_directory_and_wrong_use_lose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        export_compressed_tensors(DATA / "llmc-w8a8-kv", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
    arguments = ["convert", str(DATA / "llmc-w8a8-kv"), "-o", str(tmp_path / "new"), "--kv-cache", "none", "--to"]
    assert run([*arguments, "faquant"]) == 2
    assert "--to compressed-tensors only" in capsys.readouterr().err
    assert run([*arguments, "compressed-tensors"]) == 0
    assert not any(open_checkpoint(tmp_path / "new").schemes)
    convert_to_mindie(tmp_path / "new", tmp_path / "mindie")
