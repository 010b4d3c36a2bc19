"""Weights that are stored as one are read as parts, in the order of faquant's RoPE; contradictions are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from faquant.checkpoint.model_config import load_config, parse_config
from faquant.errors import CheckpointError, UnsupportedError
from faquant.formats import open_checkpoint
from faquant.formats.fused import rotary_order
from oracles.configs import PHI3
from oracles.tiny_models import tiny_model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tiny_model("phi4-mini", tmp_path)
    return tmp_path


def rewrite(directory: Path, change: dict[str, torch.Tensor | None]) -> None:
    path = directory / "model.safetensors"
    tensors = {**load_file(path), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def test_parts_are_rows_of_the_stored_weights(directory: Path) -> None:
    stored = load_file(directory / "model.safetensors")
    opened = open_checkpoint(directory)
    assert not any("qkv" in name or "gate_up" in name for name in opened.files.names())
    layer = "model.layers.1."
    qkv, gate_up = stored[f"{layer}self_attn.qkv_proj.weight"], stored[f"{layer}mlp.gate_up_proj.weight"]
    assert np.array_equal(opened.tensor(f"{layer}self_attn.v_proj.weight"), qkv[96:])
    assert np.array_equal(opened.tensor(f"{layer}mlp.gate_proj.weight"), gate_up[:112])
    assert np.array_equal(opened.tensor(f"{layer}mlp.up_proj.weight"), gate_up[112:])
    head = [*range(6), 12, 13, *range(6, 12), 14, 15]
    assert np.array_equal(
        opened.files.read(f"{layer}self_attn.k_proj.weight"), qkv[64:96][[*head, *(16 + i for i in head)]]
    )
    assert opened.files.total_bytes == sum(tensor.nbytes for tensor in stored.values())
    assert opened.files.fingerprint() != ""


def test_rows_that_rope_rotates_all_are_not_reordered() -> None:
    assert rotary_order(parse_config(PHI3), 256) is None


def test_a_missing_or_misshaped_weight_is_named(directory: Path) -> None:
    name = "model.layers.0.self_attn.qkv_proj.weight"
    rewrite(directory, {name: torch.zeros(100, 64)})
    with pytest.raises(
        CheckpointError, match=r"qkv_proj.weight has shape \[100, 64\], but config.json implies 128 rows"
    ):
        open_checkpoint(directory)
    parts = torch.zeros(128, 64).split([64, 32, 32])
    rewrite(
        directory,
        {name: None} | {name.replace("qkv", kind): part.clone() for kind, part in zip("qkv", parts, strict=True)},
    )
    with pytest.raises(CheckpointError, match=r"no tensor model.layers.0.self_attn.qkv_proj.weight"):
        open_checkpoint(directory)


def test_checkpoints_of_other_tools_are_refused_by_name(directory: Path) -> None:
    path = directory / "config.json"
    raw = json.loads(path.read_text())
    raw["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {},
    }
    path.write_text(json.dumps(raw))
    load_config(directory)
    with pytest.raises(UnsupportedError, match="compressed-tensors checkpoints of phi3"):
        open_checkpoint(directory)
