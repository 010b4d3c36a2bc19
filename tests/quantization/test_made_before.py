"""Interrupted runs of an earlier version (commit cad73ab) are resumed and finished."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from faquant.formats import open_checkpoint
from faquant.formats.msmodelslim.description import read_description
from faquant.model.load import load
from faquant.model.paged import Chunk, PagedDecoder
from faquant.model.rope import Rope
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES

MADE = Path(__file__).parents[1] / "data" / "made_at_cad73ab"
PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15]]


@pytest.mark.parametrize("name", ["default", "mindie"])
def test_an_interrupted_run_of_before_is_finished(name: str, tmp_path: Path) -> None:
    source, out = shutil.copytree(MADE / "float", tmp_path / "float"), tmp_path / f"interrupted_{name}"
    with tarfile.open(MADE / "interrupted.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    work = tmp_path / f".interrupted_{name}.unfinished"
    assert (work / "state.safetensors").is_file()
    (work / "output").mkdir(exist_ok=True)  # empty: git does not store empty directories

    seen: list[int] = []
    quantize(source, out, RECIPES[name], PROMPTS, progress=lambda done, _: seen.append(done))
    assert seen[0] == 2, "two of three layers were done"
    assert not work.exists()

    # The first two layers may be rounded differently today.
    quantize(source, tmp_path / "at once", RECIPES[name], PROMPTS)
    assert read_description(out) == read_description(tmp_path / "at once")
    taken_up, at_once = open_checkpoint(out), open_checkpoint(tmp_path / "at once")
    assert taken_up.files.shapes() == at_once.files.shapes()
    assert taken_up.files.dtypes() == at_once.files.dtypes()

    model = load(out)
    pages = model.make_pages(1, 128)
    chunk = Chunk(np.arange(60), 0, np.arange(1), Rope(model.config, 60))
    logits = model.decoder.logits(PagedDecoder(model.decoder, pages, model.backend).run([chunk]))
    assert logits.shape == (60, model.config.vocab_size)
    assert np.isfinite(logits).all()
