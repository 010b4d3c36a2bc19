"""Outlier suppression for msModelSlim's format: the function stays the same, and quantization loses less."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from faquant.checkpoint.model_config import load_config
from faquant.checkpoint.tensors import TensorFiles
from faquant.evaluation.divergence import window_logits
from faquant.formats import open_checkpoint
from faquant.kernels.torch_backend import TorchBackend
from faquant.model.decoder import Decoder
from faquant.model.load import Model, load
from faquant.quantization.mindie.convert import convert_to_mindie
from faquant.quantization.mindie.smoothed import SmoothingQuantizer
from faquant.quantization.pipeline import quantize
from faquant.quantization.tensors import SourceTensors
from faquant.recipe import RECIPES, LinearRecipe, Recipe
from oracles.tiny_models import tiny_model

KINDS = ("llama3", "llama-bias", "smollm", "qwen2", "qwen3", "mistral-window")


def _prompts(vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, vocabulary, (count,), generator=generator).tolist() for count in (90, 60)]


def _folded(source: Path, recipe: Recipe) -> Model:
    """The float model with everything folded in, and nothing rounded."""
    opened = open_checkpoint(source)
    model = load(source, backend=TorchBackend())
    quantizer = SmoothingQuantizer(opened.config, SourceTensors(opened.files), recipe)
    _, streams = quantizer.start([torch.tensor(ids) for ids in _prompts(opened.config.vocab_size)])
    layers = []
    for index in range(opened.config.num_layers):
        layers.append(quantizer.folded(index, streams))
        _, streams = quantizer.layer(index, streams)
    old = model.decoder
    decoder = Decoder(old.config, old.embedding, layers, old.norm, old.lm_head)
    return replace(model, decoder=decoder)


def _add_outliers(source: Path) -> None:
    """Some channels of the stream and of V are far larger than others, and shifted to one side."""
    path = source / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor[::9] *= 20.0
        if name.endswith("embed_tokens.weight"):
            tensor[:, ::9] += 1.0
        if name.endswith("v_proj.weight"):
            tensor[::7] *= 10.0
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("float_layers", [("*.down_proj",), ("*.down_proj", "*.v_proj", "*.up_proj")])
def test_folding_leaves_the_float_model_as_it_was(kind: str, float_layers: tuple[str, ...], tmp_path: Path) -> None:
    tiny_model(kind, tmp_path)
    mindie = RECIPES["mindie"]
    linear = LinearRecipe(activation="tensor", rotate="none", float_layers=float_layers)
    folded = _folded(tmp_path, mindie.model_copy(update={"linear": linear}))
    original = load(tmp_path)
    ids = torch.tensor(_prompts(original.config.vocab_size)[0])[20:70]
    torch.testing.assert_close(window_logits(folded, ids), window_logits(original, ids), rtol=1e-3, atol=1e-3)


def _kl(source: Path, quantized: Path) -> float:
    """The loss by the linears; the attention's loss in models this small is mostly chance."""
    original, model = load(source), load(quantized)
    model.schemes = [None] * model.config.num_layers
    ids = torch.tensor(_prompts(original.config.vocab_size)[0])
    p, q = (window_logits(model, ids).log_softmax(-1) for model in (original, model))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize(("kind", "dtype"), [("llama2", "float32"), ("qwen2", "bfloat16"), ("qwen3", "float16")])
def test_it_loses_less_than_the_plain_recipe_in_the_same_format(kind: str, dtype: str, tmp_path: Path) -> None:
    source = tmp_path / "float"
    tiny_model(kind, source, dtype)
    _add_outliers(source)
    prompts = _prompts(load_config(source).vocab_size)
    for name in ("mindie", "mindie-plain"):
        quantize(source, tmp_path / name, RECIPES[name], prompts)
    ours, plain = (TensorFiles.open(tmp_path / name) for name in ("mindie", "mindie-plain"))
    assert _kl(source, tmp_path / "mindie") < 0.6 * _kl(source, tmp_path / "mindie-plain")
    added = set(ours.names()) - set(plain.names())
    assert all(name.endswith("layernorm.bias") for name in added)
    assert not set(plain.names()) - set(ours.names())
    assert {name: (ours.dtype(name), ours.shape(name)) for name in plain.names()} == {
        name: (plain.dtype(name), plain.shape(name)) for name in plain.names()
    }
    assert all(ours.dtype(name) == "float32" for name in added)
    assert open_checkpoint(tmp_path / "mindie").metadata is None
    convert_to_mindie(tmp_path / "mindie", tmp_path / "converted")
    again = TensorFiles.open(tmp_path / "converted")
    assert all(np.array_equal(ours.get(name), again.get(name)) for name in ours.names())


def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "float"
    tiny_model("smollm", source)
    prompts = _prompts(load_config(source).vocab_size)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    quantize(source, tmp_path / "whole", RECIPES["mindie"], prompts)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, tmp_path / "cut", RECIPES["mindie"], prompts, progress=interrupt)
    quantize(source, tmp_path / "cut", RECIPES["mindie"], prompts)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes(), path.name
