"""Calibrate a float model into the ecosystem's own format, tensor for tensor as its tool does (docs/format.md).

The tool runs one prompt after the other through the whole model. What a layer sees depends only on the layers before
it and on the prompts so far, so running all prompts through one layer after the other gives the same, and keeps only
one layer's rounded weights in memory.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import CheckpointError
from ..model.decoder import LINEARS, DecoderLayer, RMSNorm, build_layer
from ..model.linear import FloatLinear, Linear
from ..model.load import float_linear
from ..model.opening import DTYPES
from ..model.rope import Rope
from ..model.schemes import Checked
from ..recipe import Recipe
from . import w8a8
from .layerwise import NamedTensor
from .percentile import K_RATIO, Q_RATIO, V_RATIO, HeadObserver


class MindieLinear:
    """A float linear under calibration: it observes its input, and computes with weight and input rounded."""

    def __init__(self, linear: FloatLinear) -> None:
        self._bias = linear.bias
        self._weight, self._weight_scale = w8a8.quantize_weight(linear.weight)
        self._rounded = w8a8.fake_quantize_weight(linear.weight, self._weight_scale)
        self._observer = w8a8.InputObserver()

    def __call__(self, x: Tensor) -> Tensor:
        self._observer.update(x)
        return w8a8.fake_quantize_linear(x, self._rounded, self._bias, *self._input_scale_offset())

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(t.nbytes for t in (self._weight, self._weight_scale, self._rounded, self._bias) if t is not None)

    def tensors(self, name: str) -> Iterator[NamedTensor]:
        """What the checkpoint holds of it under `name`."""
        input_scale, input_offset = self._input_scale_offset()
        scale = w8a8.deq_scale(input_scale, self._weight_scale)
        bias = w8a8.quant_bias(self._weight, input_offset, scale, self._bias)
        yield f"{name}.weight", "W8A8", self._weight
        if self._bias is not None:
            yield f"{name}.bias", "FLOAT", self._bias
        yield f"{name}.weight_scale", "W8A8", self._weight_scale
        yield f"{name}.weight_offset", "W8A8", torch.zeros_like(self._weight_scale)
        yield f"{name}.input_scale", "W8A8", input_scale
        yield f"{name}.input_offset", "W8A8", input_offset
        yield f"{name}.quant_bias", "W8A8", bias
        yield f"{name}.deq_scale", "W8A8", w8a8.pack_deq_scale(scale, input_scale.dtype)

    def _input_scale_offset(self) -> tuple[Tensor, Tensor]:
        return w8a8.input_scale_offset(*self._observer.range())


class MindieAttention:
    """Float attention over one prompt, whose q, k and v are observed: what Decoder calls with each layer's."""

    def __init__(self, window: int | None = None) -> None:
        self._window = window
        self._observers = {"q": HeadObserver(Q_RATIO), "k": HeadObserver(K_RATIO), "v": HeadObserver(V_RATIO)}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for observer, states in zip(self._observers.values(), (q, k, v), strict=True):
            observer.update(states)
        return eager_attention(q, k, v, self._window)

    def tensors(self, name: str) -> Iterator[NamedTensor]:
        """Scales and (zero) offsets of the attention module `name`."""
        scales = {kind: observer.scale() for kind, observer in self._observers.items()}
        for kind, scale in scales.items():
            yield f"{name}.fa_{kind}.scale", "FAQuant", scale
        for kind, scale in scales.items():
            yield f"{name}.fa_{kind}.offset", "FAQuant", torch.zeros_like(scale, dtype=torch.int8)


def eager_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Causal attention [tokens, Hq, D] of q with k and v [tokens, Hkv, D], step by step as transformers' `eager`.

    The scores are rounded to the states' dtype and the probabilities, computed in float32, again.
    """
    tokens, heads, dim = q.shape
    q = q.transpose(0, 1)
    k, v = (x.transpose(0, 1).repeat_interleave(heads // x.shape[1], dim=0) for x in (k, v))
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    unseen = distance < 0 if window is None else (distance < 0) | (distance >= window)
    mask = torch.zeros(tokens, tokens, dtype=q.dtype).masked_fill(unseen, torch.finfo(q.dtype).min)
    scaling: float = dim**-0.5
    scores = q @ k.transpose(1, 2) * scaling + mask
    probabilities = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    return (probabilities @ v).transpose(0, 1)


class MindieQuantizer:
    """Quantizes as the tool does, layer by layer. Streams are the prompts' residual streams in the model's dtype, in
    which everything is computed, and so its scales carry that dtype's rounding.

    What a layer sees depends on the order of the prompts, because an input is rounded with the range of those so far.
    """

    def __init__(self, config: ModelConfig, checked: Checked, recipe: Recipe) -> None:
        self.config = config
        self.checked = checked
        self.dtype = DTYPES[config.dtype]
        self.is_float: Callable[[str], bool] = recipe.linear.is_float if recipe.linear else lambda name: True

    def start(self, prompts: Iterable[Tensor]) -> tuple[list[NamedTensor], list[Tensor]]:
        """The embedding, and the streams that enter the first layer, for prompts of int64 ids [tokens]."""
        embedding = self._tensor("model.embed_tokens.weight")
        return [("model.embed_tokens.weight", "FLOAT", embedding)], [embedding[ids] for ids in prompts]

    def layer(self, index: int, streams: list[Tensor]) -> tuple[list[NamedTensor], list[Tensor]]:
        """The tensors of one layer, in the order of the tool's description, and the streams that leave it.

        Raises:
            CheckpointError: a weight or an activation is not finite.
        """
        name = f"model.layers.{index}"
        layer = build_layer(self.config, index, self._tensor, self._linear, self.checked.__contains__, self.dtype)
        attention = MindieAttention(self.config.sliding_windows[index])
        with _located(name):
            calibrating = _calibrating(layer, name, self.is_float)
            after = []
            for x in streams:
                rope = Rope(self.config, len(x))
                after.append(calibrating(x, rope.tables(torch.arange(len(x)), self.dtype), attention))
            return [*attention.tensors(f"{name}.self_attn"), *_layer_tensors(calibrating, name)], after

    def finish(self, streams: list[Tensor]) -> list[NamedTensor]:
        """What stands behind the last layer."""
        bias = self._tensor("model.norm.bias") if "model.norm.bias" in self.checked else None
        norm = RMSNorm(self._tensor("model.norm.weight"), self.config.rms_norm_eps, bias)
        tensors = list(_norm_tensors(norm, "model.norm"))
        head = self._linear("lm_head")
        tied = self.config.tie_word_embeddings
        if tied and torch.equal(head.weight, self._tensor("model.embed_tokens.weight")):
            return tensors
        with _located("lm_head"):
            linear = head if self.is_float("lm_head") else MindieLinear(head)
            if isinstance(linear, MindieLinear):
                for x in streams:
                    linear(norm(x))
            return [*tensors, *_linear_tensors(linear, "lm_head")]

    def _tensor(self, name: str) -> Tensor:
        return self.checked.finite(name).to(self.dtype)

    def _linear(self, name: str) -> FloatLinear:
        return float_linear(self.checked, self.config, name, self.dtype)


def _calibrating(layer: DecoderLayer, name: str, is_float: Callable[[str], bool]) -> DecoderLayer:
    """The layer, with those linears replaced that do not stay float."""
    names = {module.rpartition(".")[2]: f"{name}.{module}" for module in LINEARS}
    chosen: dict[str, Any] = {
        short: MindieLinear(_float_linear(getattr(layer, short))) for short in names if not is_float(names[short])
    }
    return replace(layer, **chosen)


def _layer_tensors(layer: DecoderLayer, name: str) -> Iterator[NamedTensor]:
    for module in LINEARS:
        short = module.rpartition(".")[2]
        yield from _linear_tensors(getattr(layer, short), f"{name}.{module}")
        if short == "o_proj" and layer.q_norm is not None and layer.k_norm is not None:
            yield from _norm_tensors(layer.q_norm, f"{name}.self_attn.q_norm")
            yield from _norm_tensors(layer.k_norm, f"{name}.self_attn.k_norm")
    yield from _norm_tensors(layer.input_layernorm, f"{name}.input_layernorm")
    yield from _norm_tensors(layer.post_attention_layernorm, f"{name}.post_attention_layernorm")


def _linear_tensors(linear: Linear, name: str) -> Iterator[NamedTensor]:
    if isinstance(linear, MindieLinear):
        yield from linear.tensors(name)
        return
    linear = _float_linear(linear)
    yield f"{name}.weight", "FLOAT", linear.weight
    if linear.bias is not None:
        yield f"{name}.bias", "FLOAT", linear.bias


def _norm_tensors(norm: RMSNorm, name: str) -> Iterator[NamedTensor]:
    yield f"{name}.weight", "FLOAT", norm.weight
    if norm.bias is not None:
        yield f"{name}.bias", "FLOAT", norm.bias


def _float_linear(linear: Linear) -> FloatLinear:
    if not isinstance(linear, FloatLinear):
        raise TypeError(f"Calibration needs a float model, not one with a {type(linear).__name__}.")
    return linear


@contextmanager
def _located(name: str) -> Iterator[None]:
    """Say in an error which part of the model it is about."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
