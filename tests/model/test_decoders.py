"""Serving and evaluation run the same model: layers in one call on NumPy arrays, and step by step on torch tensors,
have the same bits."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from faquant.evaluation.divergence import window_logits
from faquant.kernels.arrays import Floats
from faquant.kernels.cpu import CpuBackend
from faquant.kernels.pages import Int8Pages
from faquant.model.load import Model, load
from faquant.model.paged import Batch, Chunk, PagedDecoder
from faquant.model.rope import Rope
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.threads import set_threads
from oracles.three_sequences import PAGE_SIZE, ThreeSequences, tokens
from oracles.tiny_models import tiny_model


@pytest.fixture(scope="module", params=["smollm", "qwen2-window", "qwen3"])
def float_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The special features of each kind: a tied head, biases and windows, norms of q and k."""
    directory = tmp_path_factory.mktemp(request.param) / "float"
    tiny_model(request.param, directory)
    return directory


@pytest.fixture(scope="module", params=["default", "precise", "static", "attention-only", "mindie"])
def model(request: pytest.FixtureRequest, float_model: Path) -> Model:
    out = float_model.parent / str(request.param)
    quantize(float_model, out, RECIPES[request.param], [tokens(60, seed=5).tolist()])
    return load(out)


def served(cache: ThreeSequences, isa: str | None = None) -> Iterator[Floats]:
    decoder = cache.model.decoder
    paged = PagedDecoder(decoder, cache.pages, CpuBackend(isa), isa)
    for chunks in cache.steps():
        yield decoder.logits(paged.run(chunks))


@torch.inference_mode()
def evaluated(cache: ThreeSequences) -> Iterator[Tensor]:
    decoder = cache.model.decoder
    for chunks in cache.steps():
        batch = Batch(chunks, PAGE_SIZE)
        x = torch.from_numpy(decoder.embed(batch.tokens))
        for number, layer in enumerate(decoder.layers):
            attend = partial(batch.attend, cache.pages[number], decoder.config.sliding_windows[number])
            x = layer(x, batch.tables, lambda _, q, k, v, attend=attend: attend(q, k, v))
            assert isinstance(x, Tensor)
        yield decoder.logits(decoder.norm(x))


@pytest.mark.parametrize("threads", [1, 2, 64])
def test_arrays_in_one_call_as_tensors_step_by_step(model: Model, threads: int) -> None:
    set_threads(threads)
    of_serving, of_evaluation = ThreeSequences(model), ThreeSequences(model)
    for ours, theirs in zip(served(of_serving), evaluated(of_evaluation), strict=True):
        assert type(ours) is np.ndarray
        assert np.isfinite(ours).all()
        assert np.array_equal(ours.view(np.int32), theirs.numpy().view(np.int32))
    for ours, theirs in zip(of_serving.pages, of_evaluation.pages, strict=True):
        assert isinstance(ours, Int8Pages)
        assert isinstance(theirs, Int8Pages)
        assert (ours.saturation.written, ours.saturation.saturated) == (
            theirs.saturation.written,
            theirs.saturation.saturated,
        )
        for table, length in zip(of_serving.tables, of_serving.lengths, strict=True):
            for stored, other in zip(ours.read_bytes(table, length), theirs.read_bytes(table, length), strict=True):
                assert (stored is None and other is None) or np.array_equal(stored, other)


def test_the_layers_do_run_in_one_call_where_all_of_them_is_int8(model: Model) -> None:
    runs = PagedDecoder(model.decoder, ThreeSequences(model).pages, model.backend)._layers._runs
    recipe = model.metadata.recipe.name if model.metadata else "mindie"
    fused = recipe in ("default", "precise", "static")
    assert [(len(numbers), call is not None) for numbers, call in runs] == [(3, fused)]


def test_the_logits_of_an_evaluated_window_are_the_served_ones(model: Model) -> None:
    ids = tokens(150, seed=9)
    pages = model.make_pages(2, PAGE_SIZE)
    hidden = PagedDecoder(model.decoder, pages, model.backend).run(
        [Chunk(ids.numpy(), 0, np.array([1, 0]), Rope(model.config))]
    )
    assert np.array_equal(model.decoder.logits(hidden), window_logits(model, ids).numpy())
