"""Signal-to-noise ratios against their definition, in every basis that folding can result in; outliers; saturation."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from faquant.evaluation.divergence import variants
from faquant.evaluation.noise import NoiseMeter, Ratio
from faquant.evaluation.outliers import MEAN_OF_K, Channels
from faquant.evaluation.scores import Heads
from faquant.evaluation.streaming import Window, run
from faquant.model.load import Model, load
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES, LinearRecipe, Recipe
from oracles.tiny_models import tiny_model

IDS = torch.randint(0, 320, (64,), generator=torch.Generator().manual_seed(1))
FOLDED = Recipe(name="folded", linear=LinearRecipe(rotate="folded"))
MIXED = Recipe(name="mixed", linear=LinearRecipe(float_layers=("*.v_proj", "model.layers.0.mlp.up_proj")))


def _models(kind: str, recipe: Recipe, folder: Path) -> dict[str, Model]:
    tiny_model(kind, folder / "float")
    quantize(folder / "float", folder / "out", recipe, [IDS.tolist()])
    source = load(folder / "float")
    return {"float": source, **variants(load(folder / "out"), source)}


def _measure(models: dict[str, Model]) -> tuple[NoiseMeter, float | None]:
    windows = [Window(IDS)]
    meter = NoiseMeter(models, "float", windows, [0], 64)
    streams = run(models, windows, meter.look)
    return meter, meter.head(Heads(models), streams)


RECIPES_AND_OTHERS = [RECIPES["default"], RECIPES["static"], RECIPES["mindie-plain"], FOLDED, MIXED]


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        *((kind, recipe) for kind in ("smollm", "qwen3-bias") for recipe in RECIPES_AND_OTHERS),
        *((kind, RECIPES["default"]) for kind in ("granite-bias", "phi4-mini", "smollm3", "olmo3", "gemma3")),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_part_has_the_noise_of_eight_bits(kind: str, recipe: Recipe, tmp_path: Path) -> None:
    # In a wrong basis the noise would be as large as the signal.
    models = _models(kind, recipe, tmp_path)
    meter, head = _measure(models)
    config = models["float"].config
    least = 12 if recipe.name == "mindie-plain" else 24
    for number, layer in enumerate(meter.layers):
        values = layer.to_json()
        for name, heads in (("q", config.num_heads), ("k", config.num_kv_heads), ("v", config.num_kv_heads)):
            assert len(values[name]) == heads
            assert all(least < value < 60 for value in values[name]), (number, name, values[name])
        assert all(value is None or value > 30 for value in values["p"])
        assert values["stream"] > 15
        for name, value in values["linears"].items():
            stays = models["both"].decoder.layers[number].__dict__[name].__class__.__name__ == "FloatLinear"
            assert (value is None) == stays, name
            assert stays or least < value < 60, (number, name, value)
    assert (head is None) == (recipe.name == "mindie-plain")
    assert head is None or 24 < head < 60


def test_what_is_folded_into_v_is_not_taken_for_noise(tmp_path: Path) -> None:
    """The recipe `mindie` changes v_proj and o_proj, so the loss of its attention alone is undefined."""
    models = _models("smollm", RECIPES["mindie"], tmp_path)
    assert models.keys() == {"float", "linears", "both"}
    meter, _ = _measure(models)
    for layer in meter.layers:
        values = layer.to_json()
        assert values.keys() & {"q", "k", "v", "p"} == set()
        assert values["linears"]["v_proj"] is None
        assert values["linears"]["o_proj"] is None
        assert all(values["linears"][name] > 12 for name in ("q_proj", "k_proj", "gate_proj", "up_proj"))


def test_figures_are_the_ratio_of_energies(tmp_path: Path) -> None:
    models = _models("smollm", RECIPES["default"], tmp_path)
    meter, _ = _measure(models)
    linear, exact = (models[name].decoder.layers[0] for name in ("linears", "float"))
    x = torch.as_tensor(models["float"].decoder.embed(IDS.numpy()))
    wanted, got = exact.k_proj(exact.attention_norm(x)), linear.k_proj(linear.attention_norm(x))
    assert meter.layers[0].to_json()["linears"]["k_proj"] == pytest.approx(_decibels(wanted, got), rel=1e-6)
    seen: dict[str, Tensor] = {}

    def attention(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.update(v=v)
        return torch.zeros_like(q)

    exact(x, Window(IDS).batch(models["float"]).tables, attention)
    pages = models["attention"].make_layer_pages(0, 1, 128)
    numbers = np.arange(len(IDS))
    pages.append(torch.zeros_like(seen["v"]), seen["v"], numbers, numbers)
    v = torch.from_numpy(pages.read(np.array([0]), len(IDS))[1])
    expected = [_decibels(seen["v"][:, head], v[:, head]) for head in range(3)]
    assert meter.layers[0].to_json()["v"] == pytest.approx(expected, rel=1e-6)


def _decibels(wanted: Tensor, got: Tensor) -> float:
    wanted, got = wanted.double(), got.double()
    return 10 * math.log10(float(wanted.square().sum() / (got - wanted).square().sum()))


def test_without_noise_there_is_no_ratio() -> None:
    ratio = Ratio()
    ratio.add(torch.ones(2, 3), torch.ones(2, 3))
    assert ratio.decibels() == [None]


def test_channels_that_stand_out_are_listed_once() -> None:
    channels = Channels()
    generator = torch.Generator().manual_seed(0)
    for layer, size in enumerate((1.0, 30.0, 12.0)):
        k, stream = torch.randn(200, 2, 16, generator=generator), torch.randn(200, 64, generator=generator)
        k[:, 1, 5] *= size
        stream[:, 40] *= 20.0
        k_before_rope = torch.randn(200, 2, 16, generator=generator)
        k_before_rope[:, 0, 3] += 10.0
        channels.add(layer, {"k": k, MEAN_OF_K: k_before_rope, "stream": stream})
    found = {(one.tensor, one.head, one.channel): one for one in channels.largest()}
    assert found.keys() == {("k", 1, 5), (MEAN_OF_K, 0, 3), ("stream", None, 40)}
    assert (found["k", 1, 5].layer, found["k", 1, 5].layers) == (1, 2)
    assert found["k", 1, 5].ratio == pytest.approx(30, rel=0.2)
    assert found[MEAN_OF_K, 0, 3].ratio == pytest.approx(10, rel=0.2)
    assert found["stream", None, 40].layers == 3


def test_scales_that_are_too_small_are_counted(tmp_path: Path) -> None:
    models = _models("smollm", RECIPES["static"], tmp_path)
    honest = _measure(models)[0].layers
    # The calibration's own tokens; quantized layers before can take a value past the float model's greatest.
    assert all(layer.clipped["k"] < 1e-3 and layer.clipped["v"] < 1e-2 for layer in honest)
    for name in ("attention", "both"):
        schemes = [scheme and replace(scheme, k_scale=scheme.k_scale / 2) for scheme in models[name].schemes]
        models[name] = replace(models[name], schemes=schemes)
    halved = _measure(models)[0].layers
    assert all(layer.clipped["k"] > 0.01 and layer.clipped["v"] < 1e-2 for layer in halved)


def test_scales_per_token_have_nothing_to_count(tmp_path: Path) -> None:
    models = _models("smollm", RECIPES["default"], tmp_path)
    assert [layer.clipped for layer in _measure(models)[0].layers] == [{}, {}, {}]
