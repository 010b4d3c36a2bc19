"""transformers, with the package compressed-tensors, computes what faquant exports as faquant does."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from faquant.model.load import load
from faquant.quantization.exports.compressed_tensors import export_compressed_tensors
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.interop import PROMPTS, TOKENS, divergence, logits_over_cache
from oracles.tiny_models import tiny_model

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).with_name("run_transformers.py")
VARIABLE = "FAQUANT_MSMODELSLIM_PYTHON"


def _logits(directory: Path, ids: list[int], folder: Path) -> Tensor:
    python = os.environ.get(VARIABLE)
    if not python:
        pytest.fail(f"set {VARIABLE} to a Python with transformers 5.23.0 and compressed-tensors 0.19.0")
    out = folder / "logits.safetensors"
    subprocess.run([python, SCRIPT, directory, out, *map(str, ids)], check=True, capture_output=True)
    return load_file(out)["logits"]


@pytest.mark.parametrize("cache", ["int8", "none"])
@pytest.mark.parametrize("kind", ["llama3", "qwen2", "qwen3"])
def test_transformers_computes_the_same(kind: str, cache: Any, tmp_path: Path) -> None:
    """Over K and V as the cache has them: int8 q and integer P are ours alone. A sum in another order may move the few
    inputs that are close to a half step."""
    tiny_model(kind, tmp_path / "float")
    vocabulary = json.loads((tmp_path / "float" / "config.json").read_text())["vocab_size"]
    prompts = [[token % vocabulary for token in prompt] for prompt in PROMPTS]
    quantize(tmp_path / "float", tmp_path / "source", RECIPES["portable"], prompts)
    export_compressed_tensors(tmp_path / "source", tmp_path / "out", kv_cache=cache)
    ids = [token % vocabulary for token in TOKENS]
    theirs = _logits(tmp_path / "out", ids, tmp_path)
    exact, ours = (logits_over_cache(load(tmp_path / name), ids) for name in ("float", "out"))
    assert divergence(theirs, ours) < 0.2 * divergence(exact, theirs)
