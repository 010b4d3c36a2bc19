"""W8A8 checkpoints of llm-compressor for families that add something to norms or scores: read, and converted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from faquant.checkpoint.model_config import parse_config
from faquant.errors import UnsupportedError
from faquant.evaluation.divergence import window_logits
from faquant.formats.kv_tables import StaticTable, scheme_of
from faquant.model.load import load
from faquant.quantization.convert import convert_to_faquant
from oracles.configs import GRANITE, LLAMA
from oracles.tiny_models import tiny_model

DATA = Path(__file__).parents[1] / "data" / "interop" / "llmc-w8a8-dyn-wtensor"


@pytest.mark.parametrize("kind", ["gemma3", "granite", "olmo3"])
def test_int8_linears_of_other_tools_run_in_every_family(kind: str, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    oracle = tiny_model(kind, directory)
    tensors = {}
    for name, weight in load_file(directory / "model.safetensors").items():
        tensors[name] = weight
        if name.endswith("_proj.weight"):
            scale = weight.abs().amax(1, keepdim=True) / 127
            tensors |= {name: (weight / scale).round().to(torch.int8), f"{name}_scale": scale}
    save_file(tensors, directory / "model.safetensors")
    quantization = json.loads((DATA / "config.json").read_text())["quantization_config"]
    quantization["config_groups"]["group_0"]["weights"]["strategy"] = "channel"
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))

    ids = torch.arange(3, 90)
    logits = window_logits(load(directory), ids)
    with torch.no_grad():
        p = oracle(ids[None], use_cache=False).logits[0].log_softmax(-1)
    assert float((p.exp() * (p - logits.log_softmax(-1))).sum(-1).mean()) < 2e-2
    convert_to_faquant(directory, tmp_path / "converted")
    assert torch.equal(window_logits(load(tmp_path / "converted"), ids), logits)


def test_calibrated_scales_of_k_are_refused_where_scores_have_a_factor() -> None:
    """Their K has another unit than faquant's."""
    table = StaticTable(np.ones((2, 1), np.float32))
    assert scheme_of(parse_config(LLAMA), table, table).k_scale is not None
    config = parse_config(GRANITE)
    assert scheme_of(config, None, table).k_scale is None
    with pytest.raises(UnsupportedError, match="not supported for granite"):
        scheme_of(config, table, table)
