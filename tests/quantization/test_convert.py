"""Conversion to faquant's format, for MindIE, and to the manual's tables."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from faquant.checkpoint.tensors import TensorFiles
from faquant.errors import CheckpointError, UnsupportedError, UsageError
from faquant.formats import open_checkpoint
from faquant.kernels.tables import FloatTable
from faquant.quantization.convert import convert_to_faquant
from faquant.quantization.mindie.convert import convert_to_mindie
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES, AttentionRecipe, LinearRecipe, Recipe
from oracles.interop import DATA, Tensors, divergence, edited, linears_of, logits
from oracles.tiny_models import tiny_model

GOLDEN = DATA.parent / "golden"
QUANTIZED = sorted(path.parent.name for path in DATA.glob("*/config.json") if not path.parent.name.startswith("float"))


@pytest.mark.parametrize("name", QUANTIZED)
def test_faquant_s_format_keeps_every_bit_of_the_logits(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert_to_faquant(DATA / name, out)
    before, after = open_checkpoint(DATA / name), open_checkpoint(out)
    assert after.format == "faquant"
    assert after.metadata is not None
    assert after.metadata.name == f"imported from {before.format}"
    assert after.quant_type == before.quant_type
    assert json.loads((out / "config.json").read_text())["quantization_config"] == {"quant_method": "faquant"}
    assert np.array_equal(logits(out), logits(DATA / name))
    with pytest.raises(UsageError, match="already"):
        convert_to_faquant(out, tmp_path / "again")


def test_a_float_model_is_quantized_not_converted(tmp_path: Path) -> None:
    for convert in (convert_to_faquant, convert_to_mindie):
        with pytest.raises(UsageError, match="faquant quantize"):
            convert(DATA / "float", tmp_path / "out")


def test_negative_scales_become_positive_for_mindie(tmp_path: Path) -> None:
    """The signs of a row change for MindIE, unless it has the weight -128."""
    with pytest.raises(UnsupportedError, match="weight -128"):
        convert_to_mindie(DATA / "autoround-w8a8", tmp_path / "out")

    def narrower(tensors: Tensors) -> None:
        for key, tensor in tensors.items():
            if tensor.dtype == torch.int8:
                tensors[key] = tensor.clamp(min=-127)

    source = edited("autoround-w8a8", tmp_path / "source", narrower)
    convert_to_mindie(source, tmp_path / "out")
    for name, tensor in load_file(tmp_path / "out" / "quant_model_weight_w8a8_dynamic.safetensors").items():
        assert not name.endswith("weight_scale") or (tensor > 0).all()
    tables: Any = [open_checkpoint(path).linear("model.layers.1.mlp.up_proj") for path in (source, tmp_path / "out")]
    assert np.array_equal(*(table.weight * table.scale[:, None] for table in tables))


MINDIE = {
    "llmc-kv-tensor-asym-stat": ("FLOAT", "C8"),
    "llmc-kv-attn_head-sym-stat": ("FLOAT", "C8"),
    "llmc-w8a8-kv": ("W8A8_DYNAMIC", "C8"),
    "llmc-w8a8-static-asym": ("W8A8", None),
    "llmc-qwen2-w8a8-static-asym": ("W8A8", None),
    "modelopt-int8-default": ("W8A8", None),
    "quark-w8a8-static-asym-input": ("W8A8", None),
    "quark-kv-head-sym-postrope": ("FLOAT", "C8"),
    "msms-c8-asym-logits": ("FLOAT", "C8"),
    "msms-fa3-int8": ("FLOAT", None),
    "msms-fa3-kv-int8": ("FLOAT", "C8"),
    "msms-classic-m3-safetensor-fp32": ("W8A8", None),
}


@pytest.mark.parametrize("name", MINDIE)
def test_mindie_s_format_keeps_the_arithmetic(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    notes = convert_to_mindie(DATA / name, out)
    assert any("127 steps" in note for note in notes) == (name == "llmc-w8a8-kv")
    description = json.loads((out / "quant_model_description.json").read_text())
    assert (description["model_quant_type"], description.get("kv_cache_type")) == MINDIE[name]
    assert (description.get("fa_quant_type") == "FAQuant") == (name == "msms-fa3-int8")
    before, after = open_checkpoint(DATA / name), open_checkpoint(out)
    assert after.format == "msmodelslim"
    for linear in before.config.linears:
        one, other = before.linear(linear), after.linear(linear)
        for field in ("weight", "bias", "input_scale", "input_offset", "quant_bias", "deq_scale"):
            a, b = getattr(one, field, None), getattr(other, field, None)
            assert (a is None) == (b is None)
            assert a is None or np.array_equal(a, b)
    for ours, theirs in zip(before.schemes, after.schemes, strict=True):
        for field in ("q_scale", "k_scale", "k_offset", "v_scale", "v_offset"):
            a, b = getattr(ours, field, None), getattr(theirs, field, None)
            assert (a is None) == (b is None)
            assert a is None or np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("quark-kv-tensor-asym", "K or V has a scale per token"),
        ("llmc-kv-token-dyn", "K or V has a scale per token"),
        ("msms-w8a8dyn-fa3-qdyn-kv-int8", None),
    ],
)
def test_what_mindie_cannot_compute_is_named(name: str, reason: str | None, tmp_path: Path) -> None:
    if reason is None:
        convert_to_mindie(DATA / name, tmp_path / "out")
        return
    with pytest.raises(UnsupportedError, match=reason):
        convert_to_mindie(DATA / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_manual_s_tables_are_one_per_channel_and_read_back_to_equal_bits(dtype: str, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    tiny_model("llama2", tmp_path / "float", dtype)
    quantize(tmp_path / "float", source, RECIPES["mindie"], [[1, 2, 3, 4, 5, 6, 7, 8]])
    convert_to_mindie(source, out, tables="manual")
    files, scheme = TensorFiles.open(out), open_checkpoint(out).schemes[1]
    assert scheme is not None
    for part, heads in (("q", 4), ("k", 4), ("v", 4)):
        for kind in ("scale", "offset"):
            name = f"model.layers.1.self_attn.{part}_{kind}"
            assert files.shape(name) == (heads, 16)
            assert files.dtype(name) == dtype
        stored = load_file(next(out.glob("*.safetensors")))[f"model.layers.1.self_attn.{part}_scale"]
        table = getattr(scheme, f"{part}_scale")
        assert np.array_equal(np.broadcast_to(table, stored.shape), stored.float().numpy())
    convert_to_mindie(out, tmp_path / "again", tables="manual")
    assert files.fingerprint() == TensorFiles.open(tmp_path / "again").fingerprint()
    convert_to_mindie(out, tmp_path / "short")
    assert TensorFiles.open(tmp_path / "short").shape("model.layers.1.self_attn.fa_k.scale") == (4, 1)
    if dtype == "float32":
        assert np.array_equal(logits(out), logits(source))


def test_multipliers_are_folded_for_mindie(tmp_path: Path) -> None:
    """That of o_proj differs between the query heads of a key/value head, so o_proj becomes float."""
    name = "modelopt-int8sq-float32"
    convert_to_mindie(DATA / name, tmp_path / "out")
    before, after = open_checkpoint(DATA / name), open_checkpoint(tmp_path / "out")
    assert {name: after.linear_type(name) for name in after.config.linears} == {
        name: "FLOAT" if name.endswith(("o_proj", "lm_head")) else "W8A8" for name in before.config.linears
    }
    layer = "model.layers.1."
    tables: Any = [opened.linear(f"{layer}mlp.up_proj") for opened in (before, after)]
    down: Any = before.linear(f"{layer}mlp.down_proj")
    assert np.array_equal(tables[0].weight, tables[1].weight)
    assert np.array_equal(tables[0].deq_scale * down.input_multiplier, tables[1].deq_scale)
    float_logits, old, new = (torch.as_tensor(logits(path)) for path in (DATA / "float", DATA / name, tmp_path / "out"))
    assert divergence(float_logits, new) < divergence(float_logits, old)
    assert divergence(old, new) < 0.5 * divergence(float_logits, old)


def test_a_multiplier_that_query_heads_share_is_folded_into_v(tmp_path: Path) -> None:
    def shared(tensors: Tensors) -> None:
        for layer in range(2):
            key = f"model.layers.{layer}.self_attn.o_proj.pre_quant_scale"
            by_head = tensors[key].reshape(2, 2, 16)
            tensors[key] = by_head[:, :1].expand(2, 2, 16).reshape(-1).contiguous()

    source = edited("modelopt-int8sq-float32", tmp_path / "source", shared)
    convert_to_mindie(source, tmp_path / "out")
    after = open_checkpoint(tmp_path / "out")
    assert after.linear_type("model.layers.0.self_attn.o_proj") == "W8A8"
    assert divergence(torch.as_tensor(logits(source)), torch.as_tensor(logits(tmp_path / "out"))) < 1e-3


def test_the_manual_s_tables_of_golden(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(GOLDEN / "w8a8_fa_bf16_ascendV1", source)
    convert_to_mindie(source, tmp_path / "out", tables="manual")
    before, after = open_checkpoint(source).schemes, open_checkpoint(tmp_path / "out").schemes
    for one, other in zip(before, after, strict=True):
        for part in "qkv":
            assert np.array_equal(getattr(one, f"{part}_scale"), getattr(other, f"{part}_scale"))


def test_a_scale_per_token_has_no_table_in_the_manual(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="q has no calibrated scale"):
        convert_to_mindie(DATA / "llmc-w8a8-kv", tmp_path / "out", tables="manual")


def test_mindie_gets_positive_scales_by_way_of_faquant_s_format(tmp_path: Path) -> None:
    def narrower(tensors: Tensors) -> None:
        for key, tensor in tensors.items():
            if tensor.dtype == torch.int8:
                tensors[key] = tensor.clamp(min=-127)

    convert_to_faquant(edited("autoround-w8a8", tmp_path / "source", narrower), tmp_path / "faquant")
    convert_to_mindie(tmp_path / "faquant", tmp_path / "out")
    opened = open_checkpoint(tmp_path / "out")
    assert all((table.scale > 0).all() for table in linears_of(opened) if not isinstance(table, FloatTable))


def test_a_stale_fa_quant_type_in_config_json_does_not_survive(tmp_path: Path) -> None:
    source = edited("msms-fa3-kv-int8", tmp_path / "source", config=lambda raw: raw.update(fa_quant_type="FAKQuant"))
    convert_to_mindie(source, tmp_path / "out")
    assert open_checkpoint(tmp_path / "out").schemes[0] is not None


def test_a_static_linear_with_a_multiplier_keeps_its_own_type(tmp_path: Path) -> None:
    convert_to_faquant(DATA / "modelopt-int8sq", tmp_path / "out")
    path = tmp_path / "out" / "quant_model_description.json"
    description = json.loads(path.read_text())
    assert description["model.layers.0.self_attn.o_proj.weight"] == "FAQUANT_W8A8_SCALED"
    path.write_text(json.dumps({key: value for key, value in description.items() if key != "metadata"}))
    with pytest.raises(CheckpointError, match=r"without metadata\.faquant"):
        open_checkpoint(tmp_path / "out")


def test_a_multiplier_that_is_missing_is_noticed(tmp_path: Path) -> None:
    convert_to_faquant(DATA / "modelopt-int8sq", tmp_path / "out")
    path = next((tmp_path / "out").glob("*.safetensors"))
    tensors = load_file(path)
    del tensors["model.layers.0.self_attn.o_proj.pre_quant_scale"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="pre_quant_scale"):
        open_checkpoint(tmp_path / "out")


@pytest.mark.parametrize(
    ("linear", "reason"),
    [
        (
            {"activation": "token", "wide_inputs": ("*.o_proj",)},
            "its linears' inputs have 16 bits, and MindIE's have 8",
        ),
        ({}, r"its linears' inputs have zero points per token \(but not with the recipe's linear.activation 'token'\)"),
    ],
)
def test_inputs_that_mindie_has_not_are_refused_by_name(tmp_path: Path, linear: Any, reason: str) -> None:
    attention = AttentionRecipe(kv_scale="head", center=False, equalize=False)
    recipe = Recipe(name="other", attention=attention, linear=LinearRecipe(rotate="none", **linear))
    quantize(DATA / "float", tmp_path / "out", recipe, [[1, 2, 3, 4]])
    for tables in ("any", "manual", "c8"):
        with pytest.raises(UnsupportedError, match=reason):
            convert_to_mindie(tmp_path / "out", tmp_path / "mindie", tables=tables)


def test_norms_biases_survive_both_conversions(tmp_path: Path) -> None:
    """As outlier suppression writes them; in the sample they are zero."""

    def biased(tensors: Tensors) -> None:
        generator = torch.Generator().manual_seed(0)
        for key in [key for key in tensors if key.endswith("norm.bias")]:
            tensors[key] = torch.randn(tensors[key].shape, generator=generator) * 0.3
            copy = key.replace("norm.bias", "norm.module.bias")
            if copy in tensors:
                tensors[copy] = tensors[key].clone()

    source = edited("msms-classic-m3-safetensor-fp32", tmp_path / "source", biased)
    convert_to_faquant(source, tmp_path / "faquant")
    convert_to_mindie(tmp_path / "faquant", tmp_path / "mindie")
    assert divergence(torch.as_tensor(logits(DATA / "float")), torch.as_tensor(logits(source))) > 0.1
    assert np.array_equal(logits(tmp_path / "faquant"), logits(source))
    assert np.array_equal(logits(tmp_path / "mindie"), logits(source))


def test_layers_with_different_types_of_attention_keep_theirs(tmp_path: Path) -> None:
    def without_q(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.startswith("model.layers.1.self_attn.fa_q.")]:
            del tensors[key]

    source = edited("msms-fa3-int8", tmp_path / "source", without_q)
    path = source / "quant_model_description.json"
    description = {k: v for k, v in json.loads(path.read_text()).items() if "layers.1.self_attn.fa_q" not in k}
    path.write_text(json.dumps(description | {"model.layers.1.self_attn.quant_type": "KV_INT8"}))
    convert_to_faquant(source, tmp_path / "out")
    assert np.array_equal(logits(tmp_path / "out"), logits(source))
    with pytest.raises(UnsupportedError, match="in some layers only"):
        convert_to_mindie(source, tmp_path / "mindie")


def test_folded_norms_are_exact(tmp_path: Path) -> None:
    """Of a bfloat16 model, whose norms times multipliers are no bfloat16."""

    def edit(tensors: Tensors) -> None:
        generator = torch.Generator().manual_seed(0)
        for key in [key for key in tensors if key.endswith("layernorm.weight")]:
            tensors[key] = (1 + 0.2 * torch.randn(tensors[key].shape, generator=generator)).to(torch.bfloat16)
        for layer in range(2):
            key = f"model.layers.{layer}.self_attn.o_proj.pre_quant_scale"
            tensors[key] = tensors[key].reshape(2, 2, 16)[:, :1].expand(2, 2, 16).reshape(-1).contiguous()

    source = edited("modelopt-int8sq", tmp_path / "source", edit)
    assert convert_to_mindie(source, tmp_path / "out") == []
    assert divergence(torch.as_tensor(logits(source)), torch.as_tensor(logits(tmp_path / "out"))) < 1e-3


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight"])
def test_float64_is_written_as_float32(name: str, tmp_path: Path) -> None:
    def wider(tensors: Tensors) -> None:
        tensors[name] = tensors[name].double()

    source = edited("llmc-w8a8-kv", tmp_path / "source", wider)
    convert_to_faquant(source, tmp_path / "out")
    assert np.array_equal(logits(tmp_path / "out"), logits(source))
