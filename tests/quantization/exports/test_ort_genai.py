"""Input of onnxruntime-genai's builder: float weights and scale files; benchmarks/ort_genai_export.py runs it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from faquant.cli.main import run
from faquant.errors import OutputError, UnsupportedError
from faquant.evaluation.divergence import window_logits
from faquant.formats import open_checkpoint
from faquant.model.load import load
from faquant.quantization.exports.ort_genai import PER_CHANNEL, PER_TENSOR, export_ort_genai
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.interop import DATA, PROMPTS, TOKENS, divergence
from oracles.tiny_models import tiny_model

IDS = torch.tensor(TOKENS)


def _quantized(folder: Path, recipe: str, kind: str = "smollm", dtype: str = "float32") -> Path:
    tiny_model(kind, folder / "float", dtype)
    quantize(folder / "float", folder / "source", RECIPES[recipe], PROMPTS)
    return folder / "source"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["smollm", "qwen2", "llama-bias"])
def test_the_float_model_has_everything_folded_in(kind: str, dtype: str, tmp_path: Path) -> None:
    source, out = _quantized(tmp_path, "portable", kind, dtype), tmp_path / "out"
    assert any("zero points" in note for note in export_ort_genai(source, out))
    opened, before = open_checkpoint(out), open_checkpoint(source)
    assert opened.is_float
    table, weight = before.linear("model.layers.1.mlp.down_proj"), opened.tensor("model.layers.1.mlp.down_proj.weight")
    exact = torch.from_numpy(table.weight * table.scale[:, None])
    if dtype == "float32":
        assert np.array_equal(weight, exact)
    # Without the rounding of inputs, q, K and V, it is closer to the float model.
    floats, ours, rounded = (torch.as_tensor(window_logits(load(x), IDS)) for x in (tmp_path / "float", out, source))
    assert divergence(floats, ours) < divergence(floats, rounded)


def test_scales_cover_the_same_values_as_those_with_zero_points(tmp_path: Path) -> None:
    source, out = _quantized(tmp_path, "portable"), tmp_path / "out"
    export_ort_genai(source, out)
    by_channel, by_tensor = (json.loads((out / name).read_text()) for name in (PER_CHANNEL, PER_TENSOR))
    assert by_channel["qmax"] == by_tensor["qmax"] == 128
    for layer, scheme in enumerate(open_checkpoint(source).schemes):
        assert scheme is not None
        for part in "kv":
            scale, offset = (getattr(scheme, f"{part}_{name}") for name in ("scale", "offset"))
            reach = np.maximum((127 - offset) * scale, (127 + offset) * scale)
            found = np.array(by_channel["scales"][f"{part}_scales"][layer])
            np.testing.assert_allclose(found * 127, reach.ravel(), rtol=1e-6)
            assert by_tensor["scales"][f"{part}_scales"][layer] == found.max()


def test_float_linears_are_kept(tmp_path: Path) -> None:
    export_ort_genai(DATA / "llmc-kv-attn_head-sym-stat", tmp_path / "out")
    before, after = open_checkpoint(DATA / "llmc-kv-attn_head-sym-stat"), open_checkpoint(tmp_path / "out")
    for name in before.config.linears:
        assert np.array_equal(before.linear(name).weight, after.linear(name).weight)


def test_a_scale_per_head_is_repeated(tmp_path: Path) -> None:
    export_ort_genai(DATA / "llmc-w8a8-kv", tmp_path / "out")
    scales = json.loads((tmp_path / "out" / PER_CHANNEL).read_text())["scales"]["k_scales"]
    assert [len(layer) for layer in scales] == [32, 32]
    assert len(set(scales[0])) == 1


@pytest.mark.parametrize(
    ("kind", "recipe", "reason"),
    [
        ("smollm", "default", "rotated at run time, which"),
        ("smollm", "attention-only", "scale per token"),
        ("smollm3", "portable", "not smollm3"),
    ],
)
def test_what_cannot_be_expressed_is_refused_and_nothing_is_written(
    kind: str, recipe: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _quantized(tmp_path, recipe, kind)
    assert run(["convert", str(source), "--to", "ort-genai", "-o", str(tmp_path / "out")]) == 1
    assert reason in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float", "source"]


def test_float_attention_and_an_existing_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="its attention is float"):
        export_ort_genai(DATA / "autoround-w8a8", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        export_ort_genai(DATA / "llmc-w8a8-kv", tmp_path / "out")
