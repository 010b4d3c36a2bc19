"""The effect of a large K bias on each scheme, at several positions of the context.

python benchmarks/biased_k.py MODEL FOLDER TEXT [--tokens 512] [--context 131072]

Adds a bias of K to the Llama in MODEL: it shifts the slowest channel pair of each head from zero by 40 times the head's
median, for all tokens, before RoPE. Such channels break calibrated caches on models with a K bias. This float model is
then quantized into FOLDER, attention only, by several schemes, and compared on the same text at 0, ¼, ½, ¾ and the end
of the context, which --context lengthens by YaRN. The output is deleted.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from faquant import quantize
from faquant.checkpoint.tensors import TensorFiles
from faquant.evaluation.positions import offset_windows
from faquant.evaluation.scores import Heads, score
from faquant.evaluation.streaming import run
from faquant.kernels.arrays import Integers
from faquant.kernels.pages import Spans
from faquant.kernels.quantizers import tensor_of
from faquant.kernels.torch_backend import TorchBackend
from faquant.model.load import Model, load
from faquant.model.rope import Rope
from faquant.recipe import AttentionRecipe, Recipe
from faquant.text.tokenizer import Tokenizer

RATIO = 40.0
PLAIN = AttentionRecipe(kv_scale="head", center=False, equalize=False, rotate=False, rotate_v=False, p="uint8")
SCHEMES = {
    "per head, static": PLAIN,
    "static": AttentionRecipe(kv_scale="channel"),
    "default": AttentionRecipe(),
}


def median_sizes(model: Model, ids: Integers) -> list[torch.Tensor]:
    """For each layer, the median over channels of K's root mean square, [Hkv]; the same before and after RoPE."""
    sizes: list[torch.Tensor] = []
    decoder, numbers = model.decoder, np.arange(len(ids))

    def attention(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        sizes.append(k.square().mean(0).sqrt().median(-1).values)
        pages = model.make_layer_pages(layer, 1, len(ids))
        pages.append(k, v, numbers, numbers)
        return pages.attend(q, Spans.of([(len(ids), 0, np.zeros(1, np.int64))]))

    decoder.hidden(ids, Rope(model.config).tables(numbers), attention)
    return sizes


def write_biased(source: Path, target: Path, ids: Integers, context: int | None = None) -> None:
    """The model in `source` with a bias of K, and its context lengthened to this by YaRN."""
    model, files = load(source, backend=TorchBackend()), TensorFiles.open(source)
    config = model.config
    tensors = {name: tensor_of(files.read(name)) for name in files.names()}
    dtype = tensors["model.norm.weight"].dtype
    half = config.head_dim // 2
    for layer, sizes in enumerate(median_sizes(model, ids)):
        prefix = f"model.layers.{layer}.self_attn."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{prefix}{name}.bias"] = torch.zeros(len(tensors[f"{prefix}{name}.weight"]), dtype=dtype)
        bias = tensors[f"{prefix}k_proj.bias"].view(config.num_kv_heads, config.head_dim)
        bias[:, half - 1] = RATIO * sizes
        bias[:, 2 * half - 1] = -RATIO * sizes
    shutil.copytree(source, target)
    (target / "model.safetensors").unlink()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((source / "config.json").read_text(encoding="utf-8"))
    raw["attention_bias"] = True
    if context is not None:
        yarn = {"rope_type": "yarn", "factor": context / config.max_position}
        yarn |= {"original_max_position_embeddings": config.max_position}
        raw |= {"max_position_embeddings": context, "rope_parameters": raw.pop("rope_parameters", {}) | yarn}
    (target / "config.json").write_text(json.dumps(raw), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--context", type=int)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir()
    try:
        text = arguments.text.read_text(encoding="utf-8")
        ids = Tokenizer.from_directory(arguments.model).encode(text, add_special_tokens=False)[: arguments.tokens]
        biased = folder / "float"
        write_biased(arguments.model, biased, np.array(ids), arguments.context)
        models = {"float": load(biased)}
        for name, attention in SCHEMES.items():
            directory = folder / name.replace(", ", "-").replace(" ", "-")
            quantize(biased, directory, Recipe(name="biased", attention=attention, linear=None))
            models[name] = load(directory)
        windows = offset_windows(ids, models["float"].max_position, frozenset(models))
        scores = score(Heads(models), "float", windows, run(models, windows))
        print(f"{len(ids)} tokens of {arguments.text.name}, attention only: KL in 10⁻³ nats, and relative to the first")
        print(f"{'scheme':20}" + "".join(f"{window.position:>20,}" for window in windows))
        for name in SCHEMES:
            cells = [tuple(float(at[one].kl.mean()) for one in (name, "per head, static")) for at in scores]
            print(f"{name:20}" + "".join(f"{kl * 1e3:12.3f} {kl / first:7.4f}" for kl, first in cells))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
