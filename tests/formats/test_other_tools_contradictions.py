"""Checkpoints of other tools whose description and tensors contradict each other are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from faquant.errors import CheckpointError, FaquantError
from faquant.formats import open_checkpoint
from oracles.interop import DATA, Quantization, Tensors, edited, group, same_logits

L = "model.layers.0."


def keep(_: Any) -> None:
    """No edit."""


CONTRADICTIONS: dict[str, tuple[str, Callable[[Tensors], object], Callable[[Quantization], object], str]] = {
    "static, described as dynamic": (
        "llmc-w8a8-static-asym",
        keep,
        lambda q: group(q)["input_activations"].update(dynamic=True, strategy="token", symmetric=True),
        "description does not name",
    ),
    "inputs without their zero points": (
        "llmc-w8a8-static-asym",
        lambda t: [t.pop(key) for key in [*t] if key.endswith("input_zero_point")],
        keep,
        "input_zero_point",
    ),
    "Quark's inputs without their zero points": (
        "quark-w8a8-static-asym-input",
        lambda t: [t.pop(key) for key in [*t] if key.endswith("input_zero_point")],
        keep,
        "input_zero_point",
    ),
    "K and V without their zero points": (
        "llmc-kv-tensor-asym-stat",
        lambda t: [t.pop(key) for key in [*t] if key.endswith("_zero_point")],
        keep,
        "k_zero_point",
    ),
    "C8 without zero points": (
        "msms-c8-asym-logits",
        lambda t: [t.pop(key) for key in [*t] if key.endswith("kv_cache_offset")],
        keep,
        "kv_cache_offset",
    ),
    "zero points that the description denies": (
        "llmc-kv-tensor-asym-stat",
        keep,
        lambda q: q["kv_cache_scheme"].update(symmetric=True),
        "is not zero",
    ),
    "C8 without scales": (
        "msms-c8-asym-logits",
        lambda t: [t.pop(key) for key in [*t] if key.endswith("kv_cache_scale")],
        keep,
        "kv_cache_scale",
    ),
    "a multiplier that is an integer": (
        "modelopt-int8sq",
        lambda t: t.update({f"{L}mlp.down_proj.pre_quant_scale": torch.ones(128, dtype=torch.int32)}),
        keep,
        "must be float32",
    ),
    "a multiplier of zero": (
        "modelopt-int8sq",
        lambda t: t[f"{L}mlp.down_proj.pre_quant_scale"].zero_(),
        keep,
        "zero",
    ),
    "no targets": (
        "llmc-attn-attn_head-sym-stat",
        keep,
        lambda q: group(q).update(targets=[]),
        "without quantized weights",
    ),
    "an attention without inputs": (
        "llmc-attn-attn_head-sym-stat",
        keep,
        lambda q: group(q).update(input_activations=None),
        "only q, K and V",
    ),
    "a zero point that is not whole": (
        "msms-c8-asym-logits",
        lambda t: t[f"{L}self_attn.k_proj.kv_cache_offset"].add_(0.5),
        keep,
        "not a whole number",
    ),
    "tables of a dynamic cache": (
        "llmc-w8a8-kv",
        keep,
        lambda q: q["kv_cache_scheme"].update(dynamic=True),
        "description does not name",
    ),
    "attention without a cache": (
        "llmc-attn-attn_head-sym-stat",
        keep,
        lambda q: q.update(kv_cache_scheme=None),
        "no kv_cache_scheme",
    ),
    "a projection of attention without weights": (
        "llmc-attn-attn_head-sym-stat",
        keep,
        lambda q: group(q).update(targets=["re:.*self_attn.q_proj"]),
        "without quantized weights",
    ),
    "an int8 embedding": (
        "llmc-w8a8-kv",
        lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"].to(torch.int8)}),
        keep,
        "must be a float type",
    ),
    "int8 in an ignored layer": (
        "modelopt-int8sq",
        lambda t: [t.pop(f"{L}mlp.up_proj.{part}") for part in ("weight_scale", "input_scale", "pre_quant_scale")],
        lambda q: q["ignore"].extend([f"{L}mlp.up_proj", f"{L}mlp.gate_proj"]),
        "gate_proj",
    ),
    "a multiplier that is lost": (
        "modelopt-int8sq",
        lambda t: t.pop(f"{L}self_attn.k_proj.pre_quant_scale"),
        keep,
        "some have none",
    ),
    "two descriptions": ("modelopt-int8sq", keep, lambda q: q.update(kv_cache_quant_algo="FP8"), "other quantizations"),
    "rotations of Quark at run time": (
        "quark-w8a8-dyn-token",
        keep,
        lambda q: q.update(algo_config=[{"name": "quarot"}]),
        "rotations at run time",
    ),
    "R4 of Quark": (
        "quark-w8a8-dyn-token",
        keep,
        lambda q: q.update(algo_config=[{"name": "rotation", "r1": True, "r4": True}]),
        "rotations at run time",
    ),
    "Quark's biases": (
        "quark-w8a8-dyn-token",
        keep,
        lambda q: q["global_quant_config"].update(bias={"dtype": "int32"}),
        "biases",
    ),
    "Quark's inputs of float weights": (
        "quark-w8a8-dyn-token",
        keep,
        lambda q: q["global_quant_config"].update(weight=None),
        "float weights",
    ),
    "RoPE's side as a string": (
        "quark-kv-tensor-asym",
        keep,
        lambda q: q.update(kv_cache_post_rope="false"),
        "true or false",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_description_and_tensors_that_contradict_each_other_are_refused(case: str, tmp_path: Path) -> None:
    name, tensors, quantization, message = CONTRADICTIONS[case]
    directory = edited(
        name,
        tmp_path / "model",
        lambda found: (tensors(found), None)[1],
        lambda raw: quantization(raw.get("quantization_config", {})),
    )
    if name.startswith("msms"):
        path = directory / "quant_model_description.json"
        kept = set(load_file(next(directory.glob("quant_*.safetensors"))))
        described = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in described.items() if v != "C8" or k in kept or "." not in k}))
    with pytest.raises(FaquantError, match=message):
        open_checkpoint(directory)


def test_descriptions_that_say_the_same_differently_are_accepted(tmp_path: Path) -> None:
    cases: list[tuple[str, Callable[[Quantization], object]]] = [
        ("llmc-w8a8-kv", lambda q: q.update(quantization_status="frozen")),
        ("llmc-w8a8-kv", lambda q: group(q).update(targets=["re:.*_proj$"])),
        ("quark-w8a8-dyn-token", lambda q: q.update(algo_config=[{"name": "rotation", "r1": True, "r2": True}])),
    ]
    for number, (name, edit) in enumerate(cases):
        directory = edited(name, tmp_path / str(number), config=lambda raw, e=edit: e(raw["quantization_config"]))
        assert same_logits(directory, DATA / name)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("msms-c8-asym-logits", {"kv_cache_type": None}, "kv_cache_type is not set"),
        ("msms-fa3-int8", {f"{L}self_attn.fa_q.other": "FAQuant"}, "fa_q.other"),
    ],
)
def test_tables_that_would_not_be_used_are_refused(
    name: str, edit: dict[str, Any], message: str, tmp_path: Path
) -> None:
    added = {key: torch.ones(1) for key in edit if "." in key}
    directory = edited(name, tmp_path / "model", lambda tensors: tensors.update(added))
    path = directory / "quant_model_description.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    with pytest.raises(FaquantError, match=message):
        open_checkpoint(directory)


def described(directory: Path, **values: object) -> Path:
    path = directory / "quant_model_description.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return directory


def test_a_norm_is_no_table(tmp_path: Path) -> None:
    directory = described(edited("msms-fa3-kv-int8", tmp_path / "model"), **{"model.norm.weight": "FAQuant"})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has type FAQuant"):
        open_checkpoint(directory)


def test_a_table_under_two_names_is_refused(tmp_path: Path) -> None:
    name = f"{L}self_attn.k_scale"
    directory = edited("msms-fa3-kv-int8", tmp_path / "model", lambda tensors: tensors.update({name: torch.ones(2, 1)}))
    with pytest.raises(CheckpointError, match="There are both"):
        open_checkpoint(described(directory, **{name: "FAQuant"}))
