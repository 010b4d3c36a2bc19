"""The written tensors do not depend on the number of threads, nor streams on which prompts run together."""

from pathlib import Path

import pytest
import torch

from faquant.formats import open_checkpoint
from faquant.kernels import parallel
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


def test_each_returns_the_results_in_order_and_the_first_error() -> None:
    set_threads(3)
    assert parallel.each(lambda item: (item, torch.get_num_threads()), list(range(20))) == [(i, 1) for i in range(20)]
    assert parallel.each(lambda item: item, []) == []

    def fail(item: int) -> int:
        if item in (5, 7):
            raise ValueError(str(item))
        return item

    with pytest.raises(ValueError, match="5"):
        parallel.each(fail, list(range(20)))
    assert torch.get_num_threads() == 3
    with torch.inference_mode():
        assert all(parallel.each(lambda _: torch.zeros(1).is_inference(), list(range(4))))


def test_rows_cover_everything() -> None:
    assert parallel.rows(5, 2) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert parallel.rows(6, 4, 2) == [slice(2, 6)]
    assert parallel.rows(0, 4) == []
