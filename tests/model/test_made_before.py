"""Checkpoints made at commit cad73ab still load and answer as before."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from faquant.model.load import load
from faquant.model.paged import Chunk, PagedDecoder
from faquant.model.rope import Rope

MADE = Path(__file__).parents[1] / "data" / "made_at_cad73ab"
TOLERANCE = 1e-4


@pytest.mark.parametrize("name", ["default", "mindie"])
def test_a_checkpoint_made_before_answers_as_it_did(name: str) -> None:
    model, then = load(MADE / name), load_file(MADE / f"{name}_logits.safetensors")
    assert not model.is_float
    assert (model.metadata is None) == (name == "mindie")
    pages = model.make_pages(1, 128)
    chunk = Chunk(then["tokens"], 0, np.array([0]), Rope(model.config))
    logits = model.decoder.logits(PagedDecoder(model.decoder, pages, model.backend).run([chunk]))
    assert logits.shape == then["logits"].shape
    assert then["logits"].std(0).min() > 100 * TOLERANCE, "the logits tell the tokens apart"
    np.testing.assert_allclose(logits, then["logits"], rtol=0, atol=TOLERANCE)
