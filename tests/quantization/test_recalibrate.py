"""New tables of attention for a quantized checkpoint, whose linears stay."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from faquant.evaluation.divergence import window_logits
from faquant.formats import open_checkpoint
from faquant.kernels.tables import FloatTable
from faquant.model.load import load
from faquant.quantization.pipeline import quantize
from faquant.quantization.recalibrate import recalibrate
from faquant.recipe import RECIPES, AttentionRecipe
from oracles.interop import DATA, PROMPTS, TOKENS, divergence, linears_of, logits
from oracles.tiny_models import tiny_model


@pytest.mark.parametrize("kv_scale", ["token", "channel", "head"])
@pytest.mark.parametrize("name", ["llmc-w8a8-kv", "modelopt-int8sq", "autoround-w8a8", "msms-c8-asym-logits"])
def test_new_tables_leave_the_linears_as_they_are(name: str, kv_scale: Any, tmp_path: Path) -> None:
    recalibrate(DATA / name, tmp_path / "out", AttentionRecipe(kv_scale=kv_scale), PROMPTS)
    before, after = open_checkpoint(DATA / name), open_checkpoint(tmp_path / "out")
    assert after.metadata is not None
    assert after.metadata.name == f"calibrated-{kv_scale}, imported from {before.format}"
    for linear in before.config.linears:
        one, other = before.linear(linear), after.linear(linear)
        assert type(one) is type(other)
        assert np.array_equal(one.weight, other.weight)
        if not isinstance(one, FloatTable):
            assert getattr(one, "input_steps", None) == getattr(other, "input_steps", None)
    exact = [None] * len(before.schemes)
    model = load(tmp_path / "out")
    assert all(scheme is not None and scheme.rotation_block for scheme in model.schemes)
    new = torch.as_tensor(window_logits(model, torch.tensor(TOKENS)))
    model.schemes = exact
    assert divergence(torch.as_tensor(window_logits(model, torch.tensor(TOKENS))), new) < 0.02


def test_new_tables_are_better_than_those_of_one_sample(tmp_path: Path) -> None:
    """msModelSlim's C8 tables are those of its last sample."""
    recalibrate(DATA / "msms-c8-asym-logits", tmp_path / "out", AttentionRecipe(), PROMPTS)
    float_logits = torch.as_tensor(logits(DATA / "float"))
    old, new = (torch.as_tensor(logits(path)) for path in (DATA / "msms-c8-asym-logits", tmp_path / "out"))
    assert divergence(float_logits, new) < 0.02 * divergence(float_logits, old)


@pytest.mark.parametrize("recipe", ["default", "static", "mindie"])
def test_faquant_s_own_checkpoints_keep_their_recipe_of_linears(recipe: str, tmp_path: Path) -> None:
    tiny_model("smollm", tmp_path / "float")
    prompts = [list(range(1, 60)), list(range(60, 120))]
    quantize(tmp_path / "float", tmp_path / "old", RECIPES[recipe], prompts)
    recalibrate(tmp_path / "old", tmp_path / "new", AttentionRecipe(), prompts)
    old, new = open_checkpoint(tmp_path / "old"), open_checkpoint(tmp_path / "new")
    assert new.metadata is not None
    assert new.metadata.linear == (old.metadata.linear if old.metadata else None)
    tokens = torch.tensor(prompts[0])
    float_logits = torch.as_tensor(window_logits(load(tmp_path / "float"), tokens))
    losses = [
        divergence(float_logits, torch.as_tensor(window_logits(load(tmp_path / name), tokens)))
        for name in ("old", "new")
    ]
    assert losses[1] < 1.2 * losses[0] + 1e-6
    assert all(
        np.array_equal(one.weight, other.weight) for one, other in zip(*map(linears_of, (old, new)), strict=True)
    )
