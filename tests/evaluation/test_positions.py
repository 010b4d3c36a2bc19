"""The loss on a text does not depend on its position, also where K's map changes, and the float model's results do not
change at all."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from faquant.evaluation import streaming
from faquant.evaluation.divergence import variants
from faquant.evaluation.measure import FULL, QUICK, Effort
from faquant.evaluation.positions import (
    Offsets,
    float_drift,
    long_result,
    long_windows,
    offset_windows,
    offsets_result,
)
from faquant.evaluation.scores import Heads, score
from faquant.evaluation.streaming import Window, run
from faquant.kernels.pages import Int8Pages
from faquant.kernels.scheme import MAP_BLOCK, AttentionScheme
from faquant.model.load import Model, load
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.tiny_models import tiny_model

CONTEXT = 8192
TEXT = 256
AT_BORDERS = [0, 1920, 3968, 6016, 7040]
AT_BEGINNINGS = [0, 2048, 4096, 7168]
"""Where a block holds the whole text."""


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


@pytest.fixture(scope="module")
def models(source: Path) -> dict[str, Model]:
    """The float model, and its attention quantized."""
    out = source.parent / "attention"
    quantize(source, out, RECIPES["attention-only"], [_ids(60)])
    original = load(source)
    return {"float": original, **variants(load(out), original)}


def _measure(source: Path, out: Path) -> Offsets:
    original = load(source)
    models = {"float": original, **variants(load(out), original)}
    windows = offset_windows(_ids(TEXT), CONTEXT, frozenset(models))
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
    assert found.offsets == AT_BORDERS
    assert not found.drifts
    assert max(found.float_drift) < 1e-5
    for variant in ("attention", "both"):
        assert 0 < max(found.variants[variant]) <= 1.5 * found.variants[variant][0]


def test_a_map_for_another_position_is_seen(source: Path, tmp_path: Path) -> None:
    # Proof that the offsets measure the effect: with the first block's map everywhere, K's error grows.
    quantize(source, tmp_path / "out", RECIPES["static"], [_ids(60)])
    original, model = load(source), load(tmp_path / "out")
    model.schemes = [scheme and scheme.at(0) for scheme in model.schemes]
    models = {"float": original, **variants(model, original)}
    kl = _kl(models, AT_BORDERS)
    assert kl[-1] > 2 * kl[0]


def _kl(models: dict[str, Model], positions: Sequence[int]) -> list[float]:
    """Mean KL of the attention on the text at each position."""
    ids = torch.tensor(_ids(TEXT))
    windows = [Window(ids, position, rope_length=CONTEXT) for position in positions]
    scores = score(Heads(models), "float", windows, run(models, windows))
    return [float(at["attention"].kl.mean()) for at in scores]


@pytest.mark.parametrize("block", [3, 6])
def test_a_wrong_map_of_one_block_is_seen(block: int, models: dict[str, Model]) -> None:
    """Texts that begin with a block do not meet the block before it."""

    def damaged(scheme: AttentionScheme | None) -> AttentionScheme | None:
        assert scheme is not None
        maps = np.arange(scheme.num_maps)
        maps[block] = 0
        return replace(scheme, k_center=scheme.k_center[maps], k_equalizer=scheme.k_equalizer[maps])

    attention = models["attention"]
    wrong = {**models, "attention": replace(attention, schemes=[damaged(scheme) for scheme in attention.schemes])}
    assert _kl(wrong, AT_BEGINNINGS) == _kl(models, AT_BEGINNINGS)
    reached = [position // MAP_BLOCK in (block - 1, block) for position in AT_BORDERS]
    ratios = np.divide(_kl(wrong, AT_BORDERS), _kl(models, AT_BORDERS))
    assert ratios[reached].min() > 1.2
    assert ratios[reached].max() > 2
    assert (ratios[np.logical_not(reached)] == 1).all()


@pytest.mark.parametrize("block", [4, 7])
def test_a_jump_between_two_blocks_is_seen(
    block: int, models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From this block on, K is stored with another center than the one in the scores' bias. In a text within a block,
    the softmax cancels the difference, so that only K's rounding is a little coarser."""
    shift = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    make = Model.make_layer_pages

    def make_wrong(model: Model, layer: int, num_pages: int, page_size: int, position: int = 0) -> Any:
        pages = make(model, layer, num_pages, page_size, position)
        if isinstance(pages, Int8Pages):
            append = pages.append

            def shifted(k: Any, v: Any, slots: Any, positions: Any) -> None:
                is_far = torch.as_tensor(positions + position >= block * MAP_BLOCK)
                append(k + shift * is_far[:, None, None], v, slots, positions)

            pages.append = shifted  # type: ignore[method-assign]
        return pages

    places = [block * MAP_BLOCK, block * MAP_BLOCK - TEXT // 2]
    assert places[0] in AT_BEGINNINGS
    assert places[1] in AT_BORDERS
    right = _kl(models, places)
    monkeypatch.setattr(Model, "make_layer_pages", make_wrong)
    at_beginning, at_border = np.divide(_kl(models, places), right)
    assert at_beginning < 1.5
    assert at_border > 20


def test_a_moved_text_is_the_end_of_a_longer_one(tmp_path: Path) -> None:
    """With sliding windows the last tokens depend on near ones only, wherever the sequence began."""
    tiny_model("mistral-window", tmp_path / "float", max_position_embeddings=4096)
    quantize(tmp_path / "float", tmp_path / "out", RECIPES["attention-only"], [_ids(60)])
    model = load(tmp_path / "out")
    assert model.config.sliding_windows == (24,) * 3
    ids = torch.tensor(_ids(3200))
    for position in (896, 1920, 2944):
        text = ids[position : position + TEXT]
        moved = next(w for w in offset_windows(text.tolist(), 4096, frozenset("ab")) if w.position == position)
        one_map = replace(model, schemes=[scheme and scheme.at(position // MAP_BLOCK) for scheme in model.schemes])
        long = Window(ids[: position + TEXT], models=frozenset("a"), rope_length=4096)
        streams = run({"a": model, "b": one_map}, [long, moved])
        whole, part, other = (x[3 * 23 - TEXT :] for x in (*streams["a"], streams["b"][1]))
        if position < MAP_BLOCK:
            assert torch.equal(part, whole)
        # Elsewhere the scores' bias is relative to another center, and other keys are merged first.
        assert (part - whole).norm() < 1e-3 * whole.norm()
        assert (other - whole).norm() > 1e-2 * whole.norm()


@pytest.mark.parametrize(
    ("context", "borders"),
    [(2048, [1]), (4096, [1, 2, 3]), (8192, [2, 4, 6, 7]), (32768, [8, 16, 24, 31]), (131072, [32, 64, 96, 127])],
)
@pytest.mark.parametrize("effort", [FULL, QUICK], ids=["full", "quick"])
def test_the_text_lies_across_borders_up_to_the_end_of_the_context(
    context: int, borders: list[int], effort: Effort
) -> None:
    first, *others = offset_windows(_ids(effort.offset), context, frozenset({"float"}))
    assert first.position == 0
    assert [window.position for window in others] == [MAP_BLOCK * border - effort.offset // 2 for border in borders]
    assert borders[-1] == context // MAP_BLOCK - 1


@pytest.mark.parametrize(("tokens", "before"), [(128, 0), (129, 128), (255, 128), (511, 128), (512, 256), (4000, 512)])
def test_a_text_of_any_length_that_spans_tiles_crosses_a_border(tokens: int, before: int) -> None:
    windows = offset_windows(_ids(tokens), CONTEXT, frozenset({"float"}))
    assert [window.position % MAP_BLOCK for window in windows[1:]] == [-before % MAP_BLOCK] * (len(windows) - 1)
    assert all(window.position + tokens <= CONTEXT for window in windows)


def test_what_a_context_has_no_room_for_is_left_out() -> None:
    names = frozenset({"float"})
    assert offset_windows(_ids(96), 512, names) == []
    assert offset_windows(_ids(512), MAP_BLOCK, names) == []
    assert offset_windows(_ids(96), MAP_BLOCK + 95, names) == []
    assert [window.position for window in offset_windows(_ids(96), MAP_BLOCK + 96, names)] == [0, MAP_BLOCK]
    assert offset_windows(_ids(512), MAP_BLOCK + 255, names) == []
    assert [window.position for window in offset_windows(_ids(512), MAP_BLOCK + 256, names)] == [0, MAP_BLOCK - 256]


def test_a_long_context_is_cut_into_stretches(source: Path, tmp_path: Path) -> None:
    original = load(source)
    models = {"float": original, "same": original}
    assert long_windows(_ids(MAP_BLOCK), frozenset(models)) == []
    windows = long_windows(_ids(2 * MAP_BLOCK + 100), frozenset(models))
    found = long_result(windows, score(Heads(models), "float", windows, run(models, windows)))
    assert found is not None
    assert found.edges == [0, MAP_BLOCK, 2 * MAP_BLOCK + 100]
    assert found.variants == {"same": [0.0, 0.0]}


def test_windows_run_together_if_position_and_models_are_the_same() -> None:
    ids, names = torch.zeros(9, dtype=torch.int64), frozenset({"float"})
    windows = [
        Window(ids),
        Window(ids),
        Window(ids, 128),
        Window(ids, 128, models=names),
        Window(ids, 128, models=names),
    ]
    assert list(streaming._groups(windows)) == [range(2), range(2, 3), range(3, 5)]
