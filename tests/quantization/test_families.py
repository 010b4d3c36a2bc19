"""Each family, quantized: layers in one call have the bits of step by step, tokens one by one those of a prompt, and
what is written can be planned, inspected and loaded. test_pipeline.py compares with the float model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from faquant.checkpoint.model_config import load_config
from faquant.errors import UnsupportedError
from faquant.kernels.arrays import Floats, Integers
from faquant.model.inspection import inspect
from faquant.model.load import Model, load
from faquant.model.paged import Batch, Chunk, PagedDecoder
from faquant.model.plan import plan
from faquant.model.rope import Rope
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.tiny_models import COMMON, KINDS, tiny_model

FAMILIES = ("smollm3-window", "granite-bias", "ministral", "phi3", "phi4-mini")
TOKENS = 150


def ids(count: int, seed: int = 0) -> Integers:
    return torch.randint(COMMON["vocab_size"], (count,), generator=torch.Generator().manual_seed(seed)).numpy()


def hidden(model: Model, counts: list[int], fused: bool) -> Floats:
    """The last hidden states of a sequence that runs in chunks of so many tokens."""
    prompt, table, pages = ids(sum(counts)), np.array([3, 1]), model.make_pages(4, 128)
    rope, windows, decoder = Rope(model.config, len(prompt)), model.config.sliding_windows, model.decoder
    paged = PagedDecoder(decoder, pages, model.backend)
    assert (len(paged._layers._runs) == 1) == all(layer.is_int8 for layer in decoder.layers)
    parts, start = [], 0
    for count in counts:
        chunk = Chunk(prompt[start : start + count], start, table, rope)
        if fused:
            parts.append(paged.run([chunk]))
        else:
            batch = Batch([chunk], 128)
            attend = batch.attend
            parts.append(
                decoder.hidden(
                    batch.tokens,
                    batch.tables,
                    lambda i, q, k, v, attend=attend: attend(pages[i], windows[i], q, k, v),
                )
            )
        start += count
    return np.concatenate(parts)


@pytest.mark.parametrize("recipe", ["default", "static"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_quantized_model_has_the_same_bits_fused_and_in_any_chunks(kind: str, recipe: str, tmp_path: Path) -> None:
    tiny_model(kind, tmp_path / "float")
    made, out = RECIPES[recipe], tmp_path / "out"
    planned = plan(tmp_path / "float", made)
    quantize(tmp_path / "float", out, made, [ids(60, 1).tolist(), ids(40, 2).tolist()])
    model = load(out)
    assert all(layer.is_int8 for layer in model.decoder.layers)
    whole = hidden(model, [TOKENS], fused=True)
    assert np.array_equal(hidden(model, [TOKENS], fused=False), whole)
    assert np.array_equal(hidden(model, [100] + [1] * (TOKENS - 100), fused=True), whole)
    found = inspect(out)
    assert (found.config.model_type, found.quant_type) == (load_config(tmp_path / "float").model_type, "W8A8_DYNAMIC")
    assert found.kv_bytes_per_token == planned.ours.kv_bytes_per_token
    again = plan(out)
    assert again.ours.kv_bytes_per_token == planned.ours.kv_bytes_per_token
    assert again.ours.weight_bytes == pytest.approx(planned.ours.weight_bytes, rel=0.2)


@pytest.mark.parametrize("kind", FAMILIES)
def test_msmodelslims_recipes_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    tiny_model(kind, tmp_path / "float")
    family = KINDS[kind][0].model_type
    for recipe in ("mindie", "mindie-plain"):
        with pytest.raises(UnsupportedError, match=f"not for {family}"):
            quantize(tmp_path / "float", tmp_path / "out", RECIPES[recipe], [[1, 2, 3]])
    assert not (tmp_path / "out").exists()
