"""Tensors that a model does not have, those by other names, and values that are not finite."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from faquant.errors import CheckpointError, UnsupportedError
from faquant.formats import open_checkpoint
from faquant.model.inspection import inspect
from oracles.interop import DATA, Tensors, edited, same_logits

L = "model.layers.0."

UNKNOWN = (
    "model.layers.0.self_attn.attn_sub_norm.weight",
    "model.layers.0.self_attn.sinks",
    "model.layers.0.self_attn.q_proj.lora_A.weight",
    "model.layers.0.mlp.up_proj.weight_scale",
    "model.layers.0.self_attn.k_scale",
    "model.layers.0.input_layernorm.bias",
    "model.norm.bias",
    "model.layers.0.mlp.gate.weight",
    "score.weight",
)


@pytest.mark.parametrize(
    ("name", "unknown"),
    # ModelOpt's linears have a weight_scale.
    [("float", name) for name in UNKNOWN]
    + [("modelopt-int8-default", name) for name in UNKNOWN if not name.endswith("weight_scale")],
)
def test_tensors_that_the_architecture_does_not_have_are_refused_by_name(
    name: str, unknown: str, tmp_path: Path
) -> None:
    directory = edited(name, tmp_path / "model", lambda tensors: tensors.update({unknown: torch.ones(4)}))
    with pytest.raises(UnsupportedError, match=unknown):
        open_checkpoint(directory)


def test_a_description_does_not_make_a_tensor_known(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.sinks"
    directory = edited("msms-fa3-kv-int8", tmp_path / "model", lambda tensors: tensors.update({name: torch.ones(4)}))
    path = directory / "quant_model_description.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: "FLOAT"}))
    with pytest.raises(UnsupportedError, match=name):
        open_checkpoint(directory)


def test_harmless_tensors_are_ignored_and_listed(tmp_path: Path) -> None:
    names = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"]
    directory = edited(
        "float", tmp_path / "model", lambda tensors: tensors.update({name: torch.ones(8) for name in names})
    )
    assert sorted(open_checkpoint(directory).ignored) == sorted(names)


def test_a_directory_saved_from_the_base_model_loads(tmp_path: Path) -> None:
    def without_prefix(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.startswith("model.")]:
            tensors[key.removeprefix("model.")] = tensors.pop(key)

    directory = edited("float", tmp_path / "base", without_prefix, lambda raw: raw.update(architectures=["LlamaModel"]))
    assert same_logits(directory, DATA / "float")


def test_a_tied_model_with_only_a_head_loads(tmp_path: Path) -> None:
    def tied(raw: dict[str, Any]) -> None:
        raw["tie_word_embeddings"] = True

    def only_head(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    head = edited("float", tmp_path / "head", only_head, tied)
    embedding = edited("float", tmp_path / "embedding", lambda tensors: (tensors.pop("lm_head.weight"), None)[1], tied)
    assert same_logits(head, embedding)


def test_a_head_that_is_missing_from_an_untied_model_is_an_error(tmp_path: Path) -> None:
    directory = edited("float", tmp_path / "model", lambda tensors: (tensors.pop("lm_head.weight"), None)[1])
    with pytest.raises(CheckpointError, match=r"no lm_head\.weight"):
        open_checkpoint(directory)


@pytest.mark.parametrize("name", ["float", "llmc-w8a8-kv", "quark-kv-tensor-asym", "msms-fa3-int8"])
def test_values_that_are_not_finite_are_found_before_anything_is_loaded(name: str, tmp_path: Path) -> None:
    key = "model.norm.weight"
    directory = edited(name, tmp_path / "model", lambda tensors: tensors.update({key: torch.full((64,), torch.nan)}))
    with pytest.raises(CheckpointError, match=f"{key} holds NaN"):
        inspect(directory)
    with pytest.raises(CheckpointError, match=f"{key} holds NaN"):
        open_checkpoint(directory).check_values()


def test_large_checkpoints_are_not_searched_by_inspect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faquant.formats.base.MAX_CHECKED_BYTES", 1000)
    assert not inspect(DATA / "float").values_checked
    monkeypatch.undo()
    assert inspect(DATA / "float").values_checked


def test_tables_that_are_not_used_may_hold_anything(tmp_path: Path) -> None:
    """llm-compressor writes uninitialized memory as q_scale."""
    keys = [f"model.layers.{layer}.self_attn.q_scale" for layer in range(2)]
    directory = edited(
        "llmc-attn-attn_head-sym-stat",
        tmp_path / "model",
        lambda tensors: tensors.update({key: torch.full((4, 1, 1), torch.nan, dtype=torch.bfloat16) for key in keys}),
    )
    assert set(keys) <= set(inspect(directory).ignored)
    assert same_logits(directory, DATA / "llmc-attn-attn_head-sym-stat")


def test_types_of_attention_are_those_of_the_base_model_s_layers_too(tmp_path: Path) -> None:
    def without_prefix(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.startswith("model.")]:
            tensors[key.removeprefix("model.")] = tensors.pop(key)

    directory = edited("msms-fa3-kv-int8", tmp_path / "base", without_prefix)
    path = directory / "quant_model_description.json"
    path.write_text(json.dumps({k.removeprefix("model."): v for k, v in json.loads(path.read_text()).items()}))
    assert same_logits(directory, DATA / "msms-fa3-kv-int8")
