"""Checkpoints of other tools that are refused: other types, wrong values, contradictions, damage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from faquant.errors import CheckpointError, FaquantError, UnsupportedError
from faquant.formats import open_checkpoint
from oracles.interop import DATA, Tensors, edited, same_logits

L = "model.layers.0."

Quantization = dict[str, Any]
REFUSED: dict[str, tuple[str, Callable[[Quantization], object], str]] = {
    "weights in 4 bits": ("llmc-w8a8-kv", lambda q: group(q)["weights"].update(num_bits=4), "INT4 is not supported"),
    "FP8": ("llmc-w8a8-kv", lambda q: group(q)["weights"].update(type="float"), "FP8 is not supported"),
    "FP8 cache": ("llmc-w8a8-kv", lambda q: q["kv_cache_scheme"].update(type="float"), "kv_cache_scheme: FP8"),
    "weights only": ("llmc-w8a8-kv", lambda q: group(q).update(input_activations=None), "W8A16"),
    "scales per group": ("llmc-w8a8-kv", lambda q: group(q)["weights"].update(strategy="group"), "per group"),
    "groups of inputs": ("llmc-w8a8-kv", lambda q: group(q)["weights"].update(group_size=32), "per group"),
    "asymmetric weights": ("llmc-w8a8-kv", lambda q: group(q)["weights"].update(symmetric=False), "zero points"),
    "dynamic zero points": (
        "llmc-w8a8-kv",
        lambda q: group(q)["input_activations"].update(symmetric=False),
        "with zero points",
    ),
    "one dynamic scale": (
        "llmc-w8a8-kv",
        lambda q: group(q)["input_activations"].update(strategy="tensor"),
        "per token, not per tensor",
    ),
    "outputs": ("llmc-w8a8-kv", lambda q: group(q).update(output_activations={"num_bits": 8}), "output_activations"),
    "packed weights": ("llmc-w8a8-kv", lambda q: group(q).update(format="pack-quantized"), "pack-quantized"),
    "not compressed": ("llmc-w8a8-kv", lambda q: q.update(quantization_status="calibration"), "'calibration'"),
    "sparse": ("llmc-w8a8-kv", lambda q: q.update(sparsity_config={"format": "sparse-24-bitmask"}), "sparse"),
    "rotated at run time": (
        "llmc-w8a8-kv",
        lambda q: q.update(transform_config={"config_groups": {"R3": {"apply": [{"location": "k_cache"}]}}}),
        "transform at run time",
    ),
    "a quantized cache per group": (
        "llmc-w8a8-kv",
        lambda q: q["kv_cache_scheme"].update(strategy="group"),
        "strategy 'group'",
    ),
    "an algorithm in 4 bits": ("modelopt-int8sq", lambda q: q.update(quant_algo="W4A8_AWQ"), "quant_algo 'W4A8_AWQ'"),
    "a cache in FP8": ("modelopt-int8sq", lambda q: q.update(kv_cache_quant_algo="FP8"), "cache in 'FP8'"),
    "an FP8 cache of Quark": (
        "quark-kv-tensor-asym",
        lambda q: q["layer_quant_config"]["*k_proj"]["output_tensors"].update(dtype="fp8_e4m3"),
        "FP8_E4M3 is not supported",
    ),
    "a quantized softmax": (
        "quark-kv-tensor-asym",
        lambda q: q.update(softmax_quant_spec={"dtype": "int8"}),
        "softmax",
    ),
    "fake-quantized weights": (
        "quark-kv-tensor-asym",
        lambda q: q["export"].update(weight_format="fake_quantized"),
        "fake_quantized",
    ),
    "only K": ("quark-kv-tensor-asym", lambda q: q["exclude"].append("*v_proj"), "v_proj"),
}


def group(table: Quantization) -> Quantization:
    found: Quantization = table["config_groups"]["group_0"]
    return found


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_kernel_is_refused_as_what_it_is(case: str, tmp_path: Path) -> None:
    name, edit, message = REFUSED[case]
    directory = edited(name, tmp_path / "model", config=lambda raw: edit(raw["quantization_config"]))
    (directory / "hf_quant_config.json").unlink(missing_ok=True)  # it would contradict the edit
    with pytest.raises(FaquantError, match=message):
        open_checkpoint(directory)


WRONG: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "no object": ("llmc-w8a8-kv", lambda c: c.update(quantization_config="int8"), "must be an object, not 'int8'"),
    "a group that is no object": ("llmc-w8a8-kv", lambda c: quantized(c)["config_groups"].update(g=1), "g must be an"),
    "a flag as text": (
        "llmc-w8a8-kv",
        lambda c: group(quantized(c))["weights"].update(symmetric="false"),
        "group_0, weights: symmetric must be true or false",
    ),
    "a local scale": ("llmc-w8a8-kv", lambda c: quantized(c)["kv_cache_scheme"].update(dynamic="local"), "'local'"),
    "no strategy": ("llmc-w8a8-kv", lambda c: group(quantized(c))["weights"].pop("strategy"), "has no strategy"),
    "an invalid expression": (
        "llmc-w8a8-kv",
        lambda c: quantized(c).update(ignore=["re:model.(layers"]),
        r"ignore has 're:model\.\(layers', which is not a valid regular expression",
    ),
    "names that are no list": ("modelopt-int8sq", lambda c: quantized(c).update(ignore="lm_head"), "ignore must be a"),
    "a cache before or after RoPE": (
        "quark-kv-tensor-asym",
        lambda c: quantized(c).update(kv_cache_post_rope="false"),
        "kv_cache_post_rope must be true or false",
    ),
    "a pattern that is no object": (
        "quark-kv-tensor-asym",
        lambda c: quantized(c)["layer_quant_config"].update({"*k_proj": []}),
        r"layer_quant_config: \*k_proj must be an object",
    ),
}


def quantized(config: dict[str, Any]) -> Quantization:
    found: Quantization = config["quantization_config"]
    return found


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_named_by_their_place(case: str, tmp_path: Path) -> None:
    name, edit, message = WRONG[case]
    directory = edited(name, tmp_path / "model", config=lambda raw: (edit(raw), None)[1])
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(directory)
    assert str(caught.value).startswith(f"{directory}/config.json")


@pytest.mark.parametrize("path", sorted((DATA / "refused").glob("*.json")), ids=lambda path: path.stem)
def test_real_configurations_in_other_types_are_refused(path: Path, tmp_path: Path) -> None:
    def replace(raw: dict[str, Any]) -> None:
        raw["quantization_config"] = json.loads(path.read_text())["quantization_config"]

    with pytest.raises(UnsupportedError, match=r"is not supported|W8A16"):
        open_checkpoint(edited("float", tmp_path / "model", config=replace))


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


DAMAGED: dict[str, tuple[str, Callable[[Tensors], object], str]] = {
    "a scale of zero": ("llmc-w8a8-kv", lambda t: t[f"{L}mlp.up_proj.weight_scale"].zero_(), "zero"),
    "a scale that is NaN": ("llmc-w8a8-kv", lambda t: t[f"{L}mlp.up_proj.weight_scale"].fill_(torch.nan), "NaN"),
    "a cache's scale below zero": ("llmc-w8a8-kv", lambda t: t[f"{L}self_attn.k_scale"].neg_(), "negative"),
    "no scale": ("llmc-w8a8-kv", lambda t: t.pop(f"{L}mlp.up_proj.weight_scale"), "weight_scale"),
    "no table of V": ("llmc-w8a8-kv", lambda t: t.pop(f"{L}self_attn.v_scale"), "v_scale"),
    "too few scales": (
        "llmc-w8a8-kv",
        lambda t: t.update({f"{L}mlp.up_proj.weight_scale": torch.ones(7, 1)}),
        r"has shape \[7, 1\]",
    ),
    "a table of another shape": (
        "llmc-w8a8-kv",
        lambda t: t.update({f"{L}self_attn.k_scale": torch.ones(3)}),
        r"has shape \[3\]",
    ),
    "asymmetric weights": (
        "llmc-w8a8-kv",
        lambda t: t.update({f"{L}mlp.up_proj.weight_zero_point": torch.ones(128, 1, dtype=torch.int8)}),
        "is not zero",
    ),
    "a multiplier of another size": (
        "modelopt-int8sq",
        lambda t: t.update({f"{L}mlp.up_proj.pre_quant_scale": torch.ones(7)}),
        r"has shape \[7\]",
    ),
    "no scale of the inputs": ("modelopt-int8sq", lambda t: t.pop(f"{L}mlp.up_proj.input_scale"), "input_scale"),
    "scales of inputs per channel": (
        "modelopt-int8sq",
        lambda t: t.update({f"{L}mlp.up_proj.input_scale": torch.ones(64)}),
        "only one scale",
    ),
    "no zero point": (
        "quark-kv-tensor-asym",
        lambda t: t.pop(f"{L}self_attn.v_proj.output_zero_point"),
        "output_zero_point",
    ),
    "a norm of integers": (
        "llmc-w8a8-kv",
        lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(torch.int64)}),
        "dtype int64, but must be a float type",
    ),
    "int8 weights that no one has quantized": (
        "quark-kv-tensor-asym",
        lambda t: t.update({f"{L}mlp.up_proj.weight": t[f"{L}mlp.up_proj.weight"].to(torch.int8)}),
        "dtype int8, but must be a float type",
    ),
    "scales whose product is zero": (
        "modelopt-int8sq",
        lambda t: (t[f"{L}mlp.up_proj.input_scale"].fill_(1e-38), t[f"{L}mlp.up_proj.weight_scale"].fill_(1e-20)),
        "input_scale · .*weight_scale holds a scale that is NaN, infinite, or zero",
    ),
    "float64 beyond float32": (
        "float",
        lambda t: t.update({"lm_head.weight": torch.full((128, 64), 1e300, dtype=torch.float64)}),
        "infinity",
    ),
    "a norm's copy that differs": (
        "msms-classic-m3-safetensor-fp32",
        lambda t: t[f"{L}input_layernorm.module.weight"].add_(1),
        "differs from",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_tensors_are_named(case: str, tmp_path: Path) -> None:
    name, edit, message = DAMAGED[case]
    with pytest.raises(FaquantError, match=message):
        open_checkpoint(edited(name, tmp_path / "model", lambda tensors: (edit(tensors), None)[1])).check_values()


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
