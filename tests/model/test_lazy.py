"""Lazy models: the same results, with one layer in memory at a time."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from faquant.evaluation.divergence import compare, variants
from faquant.kernels.backend import make_backend
from faquant.model import lazy
from faquant.model.decoder import DecoderLayer
from faquant.model.load import load
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.tiny_models import tiny_model

IDS = torch.randint(0, 320, (90,), generator=torch.Generator().manual_seed(1)).tolist()


def test_a_part_is_built_once_while_somebody_holds_it() -> None:
    class Part:
        pass

    built: list[int] = []

    def build(number: int) -> Part:
        built.append(number)
        return Part()

    parts = lazy.LazySequence(build, 3)
    first = parts[0]
    assert parts[0] is first
    assert len(parts) == 3
    assert parts[-1] is not None
    del first
    gc.collect()
    assert parts[0] is not None
    assert built == [0, 2, 0]
    with pytest.raises(IndexError):
        parts[3]


def test_one_float_and_one_quantized_layer_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model("smollm", tmp_path / "float", num_hidden_layers=4)
    quantize(tmp_path / "float", tmp_path / "out", RECIPES["default"], [IDS])
    expected = _compare(tmp_path, lazy=False)
    most = 0
    made: list[weakref.ref[DecoderLayer]] = []
    init = DecoderLayer.__init__

    def counted(self: DecoderLayer, *args: Any, **values: Any) -> None:
        nonlocal most
        init(self, *args, **values)
        made.append(weakref.ref(self))
        most = max(most, sum(layer() is not None for layer in made))

    monkeypatch.setattr(DecoderLayer, "__init__", counted)
    found = _compare(tmp_path, lazy=True)
    assert found == expected
    assert (len(made), most) == (8, 2)


def _compare(folder: Path, lazy: bool) -> Any:
    source, model = load(folder / "float", lazy), load(folder / "out", lazy)
    return compare(source, variants(model, source), IDS, 40)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_lazy_model_answers_as_another(backend: str, tmp_path: Path) -> None:
    tiny_model("qwen2", tmp_path / "float")
    a, b = (load(tmp_path / "float", lazy, make_backend(backend)).decoder for lazy in (False, True))
    x = a.embed(np.array(IDS))
    assert np.array_equal(b.embed(np.array(IDS)), x)
    assert np.array_equal(a.logits(x), b.logits(x))
    assert a.lm_head.nbytes == b.lm_head.nbytes
