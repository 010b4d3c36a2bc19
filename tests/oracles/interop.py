"""Checkpoints that other tools wrote (tests/data/interop), and logits with float attention over the cache."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from faquant.evaluation.divergence import window_logits
from faquant.formats.base import Opened
from faquant.kernels.torch_backend import float_attend
from faquant.model.load import Model, load
from faquant.model.paged import Batch, Chunk
from faquant.model.rope import Rope

DATA = Path(__file__).parents[1] / "data" / "interop"
TOKENS: list[int] = json.loads((DATA / "token_ids.json").read_text())
"""The tokens of every logits.safetensors."""
PROMPTS = [TOKENS, TOKENS[::-1]]
"""For calibration."""

Tensors = dict[str, Tensor]
Quantization = dict[str, Any]


def logits_over_cache(model: Model, tokens: list[int]) -> Tensor:
    """Logits [tokens, vocab] with float attention over K and V as the cache returns them: only the rounding of K and V
    is that of the model's own attention."""
    count = len(tokens)
    batch = Batch([Chunk(np.array(tokens), 0, np.arange(1), Rope(model.config, count))], 128)
    x = model.decoder.embed(batch.tokens)
    for layer in model.decoder.layers:
        pages = model.make_layer_pages(layer.index, 1, 128)

        def attend(_: int, q: Any, k: Any, v: Any, pages: Any = pages) -> Any:
            pages.append(k, v, batch.slots, batch.positions)
            keys, values = (torch.as_tensor(x) for x in pages.read(np.arange(1), count))
            return float_attend(torch.as_tensor(q), keys, values, 0, None).numpy()

        x = layer(x, batch.tables, attend)
    return torch.as_tensor(model.decoder.logits(model.decoder.norm(x)))


def divergence(p: Tensor, q: Tensor) -> float:
    """Mean KL(p ‖ q) in nats of logits [tokens, vocab]."""
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def edited(
    name: str,
    target: Path,
    tensors: Callable[[Tensors], None] = lambda tensors: None,
    config: Callable[[dict[str, Any]], None] = lambda config: None,
) -> Path:
    """A copy of a checkpoint with edited tensors and config.json."""
    directory = shutil.copytree(DATA / name, target)
    path = next(path for path in directory.glob("*.safetensors") if path.stem != "logits")
    found = load_file(path)
    tensors(found)
    save_file(found, path)
    raw = json.loads((directory / "config.json").read_text())
    config(raw)
    (directory / "config.json").write_text(json.dumps(raw))
    return directory


def logits(directory: Path) -> Any:
    """The logits of TOKENS as faquant computes them."""
    return np.asarray(window_logits(load(directory), torch.tensor(TOKENS)))


def same_logits(a: Path, b: Path) -> bool:
    """Whether two directories give the same bits."""
    return bool(np.array_equal(logits(a), logits(b)))


def group(table: Quantization) -> Quantization:
    found: Quantization = table["config_groups"]["group_0"]
    return found


def linears_of(opened: Opened) -> list[Any]:
    """The tables of all linears."""
    return [opened.linear(name) for name in opened.config.linears]
