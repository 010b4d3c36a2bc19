"""An unwritten candidate computes the same bits as the written checkpoint."""

from pathlib import Path

import pytest
import torch

from faquant.evaluation.scores import Heads
from faquant.evaluation.streaming import Window, run
from faquant.formats import open_checkpoint
from faquant.kernels.modules import RMSNorm
from faquant.model.load import load
from faquant.quantization.candidate import Calibration, Candidate
from faquant.quantization.layerwise import LayerQuantizer
from faquant.quantization.pipeline import metadata_of, quantize
from faquant.quantization.tensors import SourceTensors
from faquant.recipe import LinearRecipe, Recipe
from oracles.tiny_models import tiny_model

PROMPTS = [torch.randint(0, 100, (60,), generator=torch.Generator().manual_seed(seed)) for seed in range(6)]
LINEARS = {
    "int8": LinearRecipe(),
    "wide": LinearRecipe(wide_inputs=("*.down_proj", "*.0.self_attn.*", "lm_head")),
    "float-head": LinearRecipe(float_layers=("lm_head",)),
    "folded": LinearRecipe(rotate="folded", float_layers=("lm_head",)),
}


@pytest.mark.parametrize(
    ("kind", "linear"),
    [
        *((kind, linear) for kind in ("qwen2", "llama-bias") for linear in LINEARS),  # a tied head, and one of its own
        *((kind, linear) for kind in ("granite", "phi4-mini", "gemma3") for linear in ("int8", "float-head")),
    ],
)
def test_a_candidate_has_the_bits_of_the_checkpoint(kind: str, linear: str, tmp_path: Path) -> None:
    recipe = Recipe(name="any", linear=LINEARS[linear])
    tiny_model(kind, tmp_path / "float")
    quantize(tmp_path / "float", tmp_path / "written", recipe, [prompt.tolist() for prompt in PROMPTS])
    opened = open_checkpoint(tmp_path / "float")
    quantizer = LayerQuantizer(
        opened.config, SourceTensors.of(opened), recipe, metadata_of(opened.config, recipe, "", "")
    )
    candidate = Candidate(quantizer, Calibration(quantizer, PROMPTS))

    models = {"written": load(tmp_path / "written"), "candidate": candidate.model}
    streams = run(models, [Window(torch.arange(50))])
    candidate.finish()
    heads = Heads(models)
    written, made = (heads.logits(name, streams[name][0]) for name in models)
    assert torch.equal(made, written)
    assert type(candidate.model.decoder.norm) is type(models["written"].decoder.norm) is RMSNorm
    assert models["written"].decoder.lm_head.is_int8 == candidate.model.decoder.lm_head.is_int8
    assert candidate.model.decoder.lm_head.is_int8 == (linear in ("int8", "wide"))
