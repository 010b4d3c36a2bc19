"""Whole decoders on the GPU's kernels have the bits of the CPU engine: logits, cache and counts."""

from pathlib import Path

import pytest
import torch

from faquant.kernels.arrays import to_numpy
from faquant.kernels.backend import make_backend
from faquant.kernels.pages import Int8Pages
from faquant.model.load import load
from faquant.model.paged import PagedDecoder
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.three_sequences import ThreeSequences, tokens
from oracles.tiny_models import tiny_model

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("exact_fma")]

# A tied head, biases and windows, norms of q and k and of outputs, two kinds of RoPE, factors. Sizes are multiples of
# 16, as the kernels need.
MODELS = {
    ("smollm", "default"): {"hidden_size": 144},
    ("qwen2-window", "static"): {},
    ("qwen3", "attention-only"): {},
    ("qwen2-window", "mindie"): {},
    ("llama3", "precise"): {},
    ("smollm3-window", "static"): {},
    ("granite", "default"): {},
    ("phi4-mini", "default"): {},
    ("gemma3", "default"): {"head_dim": 32},
    ("olmo3", "static"): {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, recipe = request.param
    folder = tmp_path_factory.mktemp(kind)
    tiny_model(kind, folder / "float", **MODELS[request.param])
    quantize(folder / "float", folder / "out", RECIPES[recipe], [tokens(60, seed=5).tolist()])
    return folder / "out"


def test_logits_cache_and_counts(directory: Path) -> None:
    # The interpreter takes half a second for a token. Of the first sequence, more tokens than decode's kernel takes.
    # Three rows run in the graph of four.
    counts = (18, 0, 3), (0, 1, 2), (1, 1, 1)
    caches = [ThreeSequences(load(directory, backend=make_backend(name)), counts) for name in ("cpu", "cuda")]
    decoders = [PagedDecoder(each.model.decoder, each.pages, each.model.backend) for each in caches]
    for step in zip(*(cache.steps() for cache in caches), strict=True):
        theirs, ours = (
            torch.from_numpy(to_numpy(decoder.logits(decoder.run(chunks))))
            for decoder, chunks in zip(decoders, step, strict=True)
        )
        assert theirs.isfinite().all()
        assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))
    for theirs, ours in zip(*(cache.pages for cache in caches), strict=True):
        assert isinstance(theirs, Int8Pages)
        assert (ours.saturation.written, ours.saturation.saturated) == (
            theirs.saturation.written,
            theirs.saturation.saturated,
        )
        for table, length in zip(caches[0].tables, caches[0].lengths, strict=True):
            for stored, other in zip(ours.read_bytes(table, length), theirs.read_bytes(table, length), strict=True):
                assert (stored is None and other is None) or torch.equal(stored, torch.as_tensor(other))
