"""The loss on a text does not depend on its position, and the float model's results do not change at all."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from faquant.evaluation.divergence import variants
from faquant.evaluation.positions import (
    Offsets,
    float_drift,
    long_result,
    long_windows,
    offset_windows,
    offsets_result,
)
from faquant.evaluation.scores import Heads, score
from faquant.evaluation.streaming import run
from faquant.kernels.scheme import MAP_BLOCK
from faquant.kernels.torch_backend import TorchBackend
from faquant.model.load import load
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.tiny_models import tiny_model

CONTEXT = 4096


def _ids(count: int) -> list[int]:
    return torch.randint(0, 320, (count,), generator=torch.Generator().manual_seed(5)).tolist()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large biases of K: outliers that are constant before RoPE and rotate with the position after it."""
    directory = tmp_path_factory.mktemp("positions") / "float"
    tiny_model("qwen2", directory, max_position_embeddings=CONTEXT)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith("k_proj.bias"):
            tensor[::7] += 20.0
    save_file(tensors, path, metadata={"format": "pt"})
    return directory


def _measure(source: Path, out: Path) -> Offsets:
    original = load(source, backend=TorchBackend())
    models = {"float": original, **variants(load(out), original)}
    windows = offset_windows(_ids(96), CONTEXT, frozenset(models))
    streams = run(models, windows)
    heads = Heads(models)
    drift = float_drift(heads, "float", streams["float"])
    result = offsets_result("own", windows, score(heads, "float", windows, streams), drift)
    assert result is not None
    return result


@pytest.mark.parametrize("name", ["default", "static"])
def test_the_error_does_not_grow_with_the_position(name: str, source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out", RECIPES[name], [_ids(60)])
    found = _measure(source, tmp_path / "out")
    assert found.offsets == [0, 1024, 2048, 3072]
    assert not found.drifts
    assert max(found.float_drift) < 1e-5
    for variant in ("attention", "both"):
        assert 0 < found.variants[variant][-1] <= 1.5 * found.variants[variant][0]


def test_a_map_for_another_position_is_seen(source: Path, tmp_path: Path) -> None:
    # Proof that the offsets measure the effect: with the first block's map everywhere, K's error grows.
    quantize(source, tmp_path / "out", RECIPES["static"], [_ids(60)])
    original, model = load(source, backend=TorchBackend()), load(tmp_path / "out")
    model.schemes = [scheme and scheme.at(0) for scheme in model.schemes]
    models = {"float": original, **variants(model, original)}
    windows = offset_windows(_ids(96), CONTEXT, frozenset(models))
    scores = score(Heads(models), "float", windows, run(models, windows))
    first, last = (float(scores[number]["attention"].kl.mean()) for number in (0, -1))
    assert last > 2 * first


def test_what_a_context_has_no_room_for_is_left_out() -> None:
    names = frozenset({"float"})
    assert offset_windows(_ids(96), 512, names) == []
    assert offset_windows(_ids(96), MAP_BLOCK + 95, names) == []
    assert [window.position for window in offset_windows(_ids(96), MAP_BLOCK + 96, names)] == [0, MAP_BLOCK]
    assert [window.position for window in offset_windows(_ids(96), 131072, names)] == [
        0,
        32768,
        65536,
        129 * 1024 - 2048,
    ]


def test_a_long_context_is_cut_into_stretches(source: Path, tmp_path: Path) -> None:
    original = load(source, backend=TorchBackend())
    models = {"float": original, "same": original}
    assert long_windows(_ids(MAP_BLOCK), frozenset(models)) == []
    windows = long_windows(_ids(2 * MAP_BLOCK + 100), frozenset(models))
    found = long_result(windows, score(Heads(models), "float", windows, run(models, windows)))
    assert found is not None
    assert found.edges == [0, MAP_BLOCK, 2 * MAP_BLOCK + 100]
    assert found.variants == {"same": [0.0, 0.0]}
