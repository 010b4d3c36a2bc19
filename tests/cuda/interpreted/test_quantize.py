"""Quantizing with the GPU's kernels writes the bytes that the CPU writes."""

from pathlib import Path

import pytest

from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.three_sequences import tokens
from oracles.tiny_models import tiny_model

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("exact_fma")]


def test_same_bytes(tmp_path: Path) -> None:
    tiny_model("qwen3-bias", tmp_path / "float", num_hidden_layers=1, dtype="bfloat16")
    prompts = [tokens(length, length).tolist() for length in (7, 3)]
    written = []
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        quantize(tmp_path / "float", out, RECIPES["default"], prompts, device=device)
        written.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert written[1] == written[0]
