"""msModelSlim's recipe for a whole directory, in memory."""

from collections.abc import Sequence
from pathlib import Path

import torch

from faquant.formats import open_checkpoint
from faquant.quantization.layerwise import NamedTensor
from faquant.quantization.mindie.plain import MindieQuantizer
from faquant.quantization.tensors import SourceTensors
from faquant.recipe import RECIPES, LinearRecipe, Recipe


def calibrate(directory: Path, prompts: Sequence[Sequence[int]], float_layers: Sequence[str]) -> list[NamedTensor]:
    """Every tensor of the quantized checkpoint, in order; `float_layers` are patterns of linears that stay float."""
    opened = open_checkpoint(directory)
    mindie = RECIPES["mindie-plain"]
    linear = LinearRecipe(**{**mindie.linear.model_dump(), "float_layers": tuple(float_layers)})
    quantizer = MindieQuantizer(
        opened.config, SourceTensors(opened.files), Recipe(**{**mindie.model_dump(), "linear": linear})
    )
    result, streams = quantizer.start([torch.tensor(ids) for ids in prompts])
    for index in range(opened.config.num_layers):
        tensors, streams = quantizer.layer(index, streams)
        result += tensors
    return result + quantizer.finish(streams)
