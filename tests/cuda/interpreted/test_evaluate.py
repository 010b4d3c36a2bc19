"""Evaluation through the GPU's kernels has the figures of the CPU's, but for the rounding of float attention."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faquant.evaluation.measure import Effort, evaluate
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.three_sequences import tokens
from oracles.tiny_models import tiny_model
from oracles.tiny_tokenizer import write_tokenizer

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("exact_fma")]

TINY = Effort(window=12, text=12, noise=8, offset=0, long=0, needle=0)


def test_same_figures(tmp_path: Path) -> None:
    tiny_model("llama-bias", tmp_path / "float", num_hidden_layers=1)
    write_tokenizer(tmp_path / "float")
    quantize(tmp_path / "float", tmp_path / "out", RECIPES["default"], [tokens(60, seed=5).tolist()])
    theirs, ours = (
        evaluate(tmp_path / "out", tmp_path / "float", {"text": "Attention in 8 bits."}, TINY, device=device).to_json()
        for device in ("cpu", "cuda")
    )
    for name in ("texts", "layers", "lm_head"):
        assert list(flat(ours[name])) == pytest.approx(list(flat(theirs[name])), rel=1e-3), name


def flat(values: Any) -> Iterator[float]:
    """All numbers in JSON values, in order."""
    if isinstance(values, (dict, list)):
        for value in values.values() if isinstance(values, dict) else values:
            yield from flat(value)
    elif values is not None:
        yield values
