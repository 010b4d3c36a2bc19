"""Quantizing float linears beside the tables of K and V that another tool wrote."""

from pathlib import Path

import numpy as np
import pytest

from faquant.errors import UsageError
from faquant.formats import open_checkpoint
from faquant.quantization.pipeline import quantize
from faquant.quantization.recalibrate import recalibrate
from faquant.recipe import RECIPES, AttentionRecipe
from oracles.interop import DATA, PROMPTS, logits


def test_tables_beside_float_linears_are_used_only_when_asked(tmp_path: Path) -> None:
    source = DATA / "llmc-kv-attn_head-sym-stat"
    quantize(source, tmp_path / "own", RECIPES["default"], PROMPTS)
    chosen = RECIPES["default"].model_copy(update={"attention": None})
    quantize(source, tmp_path / "kept", chosen, PROMPTS, keep_kv_tables=True)
    own, kept, given = (open_checkpoint(path).schemes[1] for path in (tmp_path / "own", tmp_path / "kept", source))
    assert own is not None
    assert own.k_scale is None
    assert kept is not None
    assert given is not None
    for field in ("k_scale", "v_scale"):
        assert np.array_equal(getattr(kept, field), getattr(given, field))
    assert kept.rotation_block == 0
    assert kept.v_rotation_block == 0
    plain = DATA / "float"
    quantize(plain, tmp_path / "plain", RECIPES["default"], PROMPTS)
    assert np.array_equal(logits(tmp_path / "plain"), logits(tmp_path / "own"))


@pytest.mark.parametrize("recipe", ["attention-only", "static"])
def test_faquant_s_own_attention_is_not_kept(recipe: str, tmp_path: Path) -> None:
    """Its scales belong to centered and rotated K."""
    source = tmp_path / "source"
    if recipe == "static":
        recalibrate(DATA / "float", source, AttentionRecipe(kv_scale="channel"), PROMPTS)
    else:
        quantize(DATA / "float", source, RECIPES[recipe], PROMPTS)
    chosen = RECIPES["default"].model_copy(update={"attention": None})
    with pytest.raises(UsageError, match="faquant's own attention"):
        quantize(source, tmp_path / "out", chosen, PROMPTS, keep_kv_tables=True)


def test_there_must_be_tables_to_keep_and_float_linears(tmp_path: Path) -> None:
    chosen = RECIPES["default"].model_copy(update={"attention": None})
    with pytest.raises(UsageError, match="no tables"):
        quantize(DATA / "float", tmp_path / "out", chosen, PROMPTS, keep_kv_tables=True)
    with pytest.raises(UsageError, match="faquant calibrate"):
        quantize(DATA / "llmc-w8a8-kv", tmp_path / "out", RECIPES["default"], PROMPTS)


def test_kept_tables_leave_the_linears_at_their_own_steps(tmp_path: Path) -> None:
    chosen = RECIPES["default"].model_copy(update={"attention": None})
    source = DATA / "llmc-kv-attn_head-sym-stat"
    quantize(source, tmp_path / "kept", chosen, PROMPTS, keep_kv_tables=True)
    assert open_checkpoint(tmp_path / "kept").input_steps == 127
    recalibrate(tmp_path / "kept", tmp_path / "new", AttentionRecipe(), PROMPTS)
    metadata = open_checkpoint(tmp_path / "new").metadata
    assert metadata is not None
    assert metadata.imported is None
