"""msModelSlim's format, with the same tensors as msModelSlim writes (docs/format.md).

msModelSlim runs one prompt after another through the whole model. The input of a layer depends only on the layers
before it and on the prompts so far, so running all prompts through one layer after another has the same result, and
keeps only one layer's rounded weights in memory.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...checkpoint.model_config import LINEARS, ModelConfig
from ...checkpoint.pieces import Keep, keep_nothing
from ...kernels.torch_backend import TorchBackend, TorchLinear, TorchRMSNorm
from ...model.decoder import DecoderLayer, Tables, build_layer
from ...model.rope import Rope
from ...recipe import Recipe
from ..tensors import DTYPES, NamedTensor, SourceTensors
from .attention import MindieAttention
from .linears import MindieLinear
from .smoothing import float_linear_of
from .tensors import layer_tensors, linear_tensors, located, norm_tensors


class MindieQuantizer:
    """Quantizes as msModelSlim does, layer by layer. Streams are the prompts' residual streams in the model's dtype, in
    which everything is computed, so the scales include its rounding.

    The result depends on the order of the prompts, because an input is rounded with the range of the prompts so far.
    """

    head_blocks = 1

    def __init__(self, config: ModelConfig, checked: SourceTensors, recipe: Recipe) -> None:
        self.config = config
        self.checked = checked
        self.dtype = DTYPES[config.dtype]
        self._backend = TorchBackend(self.dtype)
        self.is_float: Callable[[str], bool] = recipe.linear.is_float if recipe.linear else lambda name: True

    def start(self, prompts: Iterable[Tensor]) -> tuple[list[NamedTensor], list[Tensor]]:
        """The embedding, and the streams into the first layer, for prompts of int64 ids [tokens]."""
        embedding = self._tensor("model.embed_tokens.weight")
        return [("model.embed_tokens.weight", "FLOAT", embedding)], [embedding[ids] for ids in prompts]

    def layer(self, index: int, streams: list[Tensor]) -> tuple[list[NamedTensor], list[Tensor]]:
        """The tensors of one layer, in the order of msModelSlim's description, and the streams after it.

        Raises:
            CheckpointError: a weight or an activation is not finite.
        """
        name = f"model.layers.{index}"
        layer = build_layer(self.config, index, self._backend, self._tensor, self._linear, self.checked.__contains__)
        attention = MindieAttention(self.config.sliding_windows[index])
        with located(name):
            calibrating = _calibrating(layer, name, self.is_float)
            after = []
            for x in streams:
                after.append(calibrating(x, _tables(Rope(self.config, len(x)), len(x)), attention))
            return [*attention.tensors(f"{name}.self_attn"), *layer_tensors(calibrating, name, self.config)], after

    def finish(
        self,
        streams: list[Tensor],
        keep: Keep = keep_nothing,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[NamedTensor]:
        """The tensors after the last layer; they take so little time that no pieces are saved."""
        bias = self._tensor("model.norm.bias") if "model.norm.bias" in self.checked else None
        norm = TorchRMSNorm(self._tensor("model.norm.weight"), self.config.rms_norm_eps, bias)
        tensors = list(norm_tensors(norm, "model.norm"))
        head = self._linear("lm_head")
        tied = self.config.tie_word_embeddings
        if tied and torch.equal(head.weight, self._tensor("model.embed_tokens.weight")):
            return tensors
        with located("lm_head"):
            linear = head if self.is_float("lm_head") else MindieLinear(head)
            if isinstance(linear, MindieLinear):
                for x in streams:
                    linear.observe(norm(x))
            return [*tensors, *linear_tensors(linear, "lm_head")]

    def _tensor(self, name: str) -> Tensor:
        return self.checked.finite(name).to(self.dtype)

    def _linear(self, name: str) -> TorchLinear:
        return float_linear_of(self._backend.linear(self.checked.float_table(name, self.config)))


def _tables(rope: Rope, tokens: int) -> Tables:
    """RoPE's tables for a prompt, with torch's cosine and sine as in msModelSlim: when an input is rounded, their last
    bit can make a whole step."""
    angles = torch.arange(tokens).float()[:, None] * torch.from_numpy(rope.frequencies)
    angles = torch.cat((angles, angles), dim=-1)[:, None, :]
    return angles.cos() * rope.scaling, angles.sin() * rope.scaling


def _calibrating(layer: DecoderLayer, name: str, is_float: Callable[[str], bool]) -> DecoderLayer:
    """The layer with all linears replaced that are quantized."""
    names = {module.rpartition(".")[2]: f"{name}.{module}" for module in LINEARS}
    chosen: dict[str, Any] = {
        short: MindieLinear(float_linear_of(getattr(layer, short))) for short in names if not is_float(names[short])
    }
    return replace(layer, **chosen)
