"""A C8 cache for MindIE and vllm-ascend: calibrated over all samples, and read back to equal bits."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from faquant.checkpoint.model_config import load_config
from faquant.checkpoint.tensors import TensorFiles
from faquant.errors import OutputError, UnsupportedError
from faquant.formats import open_checkpoint
from faquant.quantization.mindie.convert import Tables, convert_to_mindie
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.interop import DATA
from oracles.tiny_models import tiny_model

PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8], [40, 30, 20, 10]]


def _quantized(kind: str, dtype: str, recipe: str, folder: Path) -> Path:
    tiny_model(kind, folder / "float", dtype)
    quantize(folder / "float", folder / recipe, RECIPES[recipe], PROMPTS)
    return folder / recipe


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["smollm", "qwen2", "qwen3"])
def test_portable_is_read_back_to_equal_bits(kind: str, dtype: str, tmp_path: Path) -> None:
    source, out = _quantized(kind, dtype, "portable", tmp_path), tmp_path / "c8"
    assert convert_to_mindie(source, out, tables="c8") == []
    description = json.loads((out / "quant_model_description.json").read_text())
    assert (description["kv_cache_type"], description["model_quant_type"]) == ("C8", "W8A8_DYNAMIC")
    assert not any("fa_" in key for key in (*description, *json.loads((out / "config.json").read_text())))
    config = load_config(out)
    shape = (config.num_kv_heads * config.head_dim,)
    assert TensorFiles.open(out).shape("model.layers.1.self_attn.k_proj.kv_cache_offset") == shape
    before, after = open_checkpoint(source), open_checkpoint(out)
    assert after.format == "msmodelslim"
    for ours, theirs in zip(before.schemes, after.schemes, strict=True):
        for name in ("k_scale", "k_offset", "v_scale", "v_offset"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    for name in before.config.linears:
        one, other = before.linear(name), after.linear(name)
        assert all(np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)), name


def test_calibrated_scales_of_q_are_left_out_and_named(tmp_path: Path) -> None:
    source, out = _quantized("smollm", "bfloat16", "mindie-plain", tmp_path), tmp_path / "c8"
    (note,) = convert_to_mindie(source, out, tables="c8")
    assert note.startswith("The calibrated scales of q are left out")
    assert not any("fa_" in name for name in TensorFiles.open(out).names())
    before, after = open_checkpoint(source).schemes[0], open_checkpoint(out).schemes[0]
    assert before is not None
    assert after is not None
    assert np.array_equal(before.k_scale, after.k_scale)
    assert after.q_scale is None


@pytest.mark.parametrize(
    ("recipe", "reasons"),
    [
        ("default", ("rotated at run time", "scale per token", "centered", "--recipe portable")),
        ("attention-only", ("scale per token", "centered")),
    ],
)
def test_what_c8_cannot_express_is_refused_and_nothing_is_written(
    recipe: str, reasons: tuple[str, ...], tmp_path: Path
) -> None:
    source = _quantized("smollm", "float32", recipe, tmp_path)
    with pytest.raises(UnsupportedError) as refused:
        convert_to_mindie(source, tmp_path / "c8", tables="c8")
    assert all(reason in str(refused.value) for reason in reasons)
    assert not list(tmp_path.glob("*c8*"))


@pytest.mark.parametrize(("tables", "recipe"), [("c8", "portable"), ("any", "mindie")])
def test_a_recipe_is_advised_where_it_helps(tables: Tables, recipe: str, tmp_path: Path) -> None:
    source = _quantized("smollm", "float32", "default", tmp_path / "plain")
    with pytest.raises(UnsupportedError, match=rf"--recipe {recipe} instead\.$"):
        convert_to_mindie(source, tmp_path / "out", tables=tables)
    source = _quantized("smollm3", "float32", "default", tmp_path / "other")
    with pytest.raises(UnsupportedError, match=r"not for smollm3; .*no recipe helps\.$"):
        convert_to_mindie(source, tmp_path / "out", tables=tables)


def test_float_attention_has_no_tables(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="its attention is float"):
        convert_to_mindie(DATA / "autoround-w8a8", tmp_path / "c8", tables="c8")


def test_an_existing_directory_is_kept(tmp_path: Path) -> None:
    source = DATA / "llmc-w8a8-kv"
    (tmp_path / "c8").mkdir()
    (tmp_path / "c8" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        convert_to_mindie(source, tmp_path / "c8", tables="c8")
    assert [path.name for path in (tmp_path / "c8").iterdir()] == ["notes.txt"]
