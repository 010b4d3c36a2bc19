"""The written tensors do not depend on the number of threads, nor streams on which prompts run together."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from faquant.errors import CheckpointError
from faquant.formats import open_checkpoint
from faquant.model import paged
from faquant.quantization import rounding
from faquant.quantization.layerwise import LayerQuantizer
from faquant.quantization.pipeline import metadata_of, quantize
from faquant.quantization.recalibrate import recalibrate
from faquant.quantization.tensors import SourceTensors
from faquant.recipe import RECIPES, AttentionRecipe, LinearRecipe, Recipe
from oracles.threads import set_threads
from oracles.tiny_models import tiny_model

PROMPTS = [torch.randint(0, 300, (size,), generator=torch.Generator().manual_seed(size)) for size in (50, 3, 70, 1, 20)]
FOLDED = Recipe(name="folded", attention=AttentionRecipe(), linear=LinearRecipe(rotate="folded"))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that there are several, for every thread."""
    monkeypatch.setattr(rounding, "_TILE", 16)
    monkeypatch.setattr(rounding, "_OUTPUTS", 16)
    monkeypatch.setattr(paged, "TOGETHER", 60)


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("recipe", [*RECIPES.values(), FOLDED], ids=lambda recipe: recipe.name)
def test_the_bytes_do_not_depend_on_the_threads(recipe: Recipe, tmp_path: Path) -> None:
    tiny_model("qwen3-bias", tmp_path / "float")
    written = []
    for threads in (1, 2, 4):
        set_threads(threads)
        out = tmp_path / str(threads)
        quantize(tmp_path / "float", out, recipe, [prompt.tolist() for prompt in PROMPTS])
        assert torch.get_num_threads() == threads
        if recipe.format != "msmodelslim":
            recalibrate(out, tmp_path / f"again {threads}", AttentionRecipe(), [prompt.tolist() for prompt in PROMPTS])
            written.append((_contents(out), _contents(tmp_path / f"again {threads}")))
        else:
            written.append((_contents(out), {}))
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("value", [1e38, math.inf, math.nan])
@pytest.mark.parametrize("recipe", ["default", "mindie"])
def test_a_calibration_that_overflows_is_refused(recipe: str, value: float, threads: int, tmp_path: Path) -> None:
    """By a weight that is finite; one that is not is found when it is read."""
    tiny_model("smollm", tmp_path / "float")
    tensors = load_file(tmp_path / "float" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3] = value
    save_file(tensors, tmp_path / "float" / "model.safetensors", metadata={"format": "pt"})
    set_threads(threads)
    message = "Calibration overflowed" if math.isfinite(value) else "up_proj.weight holds NaN or infinity"
    with pytest.raises(CheckpointError, match=message):
        quantize(tmp_path / "float", tmp_path / "out", RECIPES[recipe], [prompt.tolist() for prompt in PROMPTS])
    assert torch.get_num_threads() == threads


def test_a_prompt_s_stream_does_not_depend_on_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model("smollm", tmp_path / "float")
    opened = open_checkpoint(tmp_path / "float")
    recipe = RECIPES["default"]
    quantizer = LayerQuantizer(
        opened.config, SourceTensors(opened.files), recipe, metadata_of(opened.config, recipe, "", "")
    )
    _, streams = quantizer.start(PROMPTS)
    alone = [quantizer.observe(0, [stream])[1][0] for stream in streams]
    for together in (1, 60, 4096):
        monkeypatch.setattr(paged, "TOGETHER", together)
        _, after = quantizer.observe(0, streams)
        assert all(torch.equal(one, other) for one, other in zip(after, alone, strict=True))
