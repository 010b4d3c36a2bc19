"""Calibrate a float model into the ecosystem's own format, tensor for tensor as its tool does (docs/format.md).

The tool runs one prompt after the other through the whole model. What a layer sees depends only on the layers before
it and on the prompts so far, so running all prompts through one layer after the other gives the same, and keeps only
one layer's rounded weights in memory.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, UsageError
from ..model.decoder import LINEARS, Decoder, DecoderLayer, RMSNorm
from ..model.linear import FloatLinear, Linear
from ..model.rope import Rope
from . import w8a8
from .percentile import K_RATIO, Q_RATIO, V_RATIO, HeadObserver

NamedTensor = tuple[str, str, Tensor]
"""Name, type in the description, tensor."""


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


def calibrate_mindie(
    decoder: Decoder, prompts: Sequence[Sequence[int]], is_float: Callable[[str], bool]
) -> Iterator[NamedTensor]:
    """Yield every tensor of the quantized checkpoint, in the order of the tool's description.

    Args:
        decoder: float, in the checkpoint's dtype, in which everything is computed; it is not changed.
        prompts: token ids; order matters, because an input is rounded with the range of the prompts so far.
        is_float: whether the linear of that name (`model.layers.0.mlp.down_proj`, `lm_head`) stays float.

    Raises:
        UsageError: a prompt is empty, or there is none.
        CheckpointError: a weight or an activation is not finite.
    """
    if not prompts or not all(prompts):
        raise UsageError("Calibration needs at least one prompt, and none may be empty.")
    config = decoder.config
    states = [decoder.embedding[torch.tensor(ids)].to(decoder.dtype) for ids in prompts]
    tables = [Rope(config, len(ids)).tables(torch.arange(len(ids)), decoder.dtype) for ids in prompts]
    yield "model.embed_tokens.weight", "FLOAT", decoder.embedding
    for layer in decoder.layers:
        name = f"model.layers.{layer.index}"
        attention = MindieAttention(config.sliding_windows[layer.index])
        with _located(name):
            calibrating = _calibrating(layer, name, is_float)
            states = [calibrating(x, table, attention) for x, table in zip(states, tables, strict=True)]
            yield from attention.tensors(f"{name}.self_attn")
            yield from _layer_tensors(calibrating, name)
    yield from _norm_tensors(decoder.norm, "model.norm")
    head = _float_linear(decoder.lm_head)
    if config.tie_word_embeddings and torch.equal(head.weight, decoder.embedding):
        return
    with _located("lm_head"):
        linear = head if is_float("lm_head") else MindieLinear(head)
        if isinstance(linear, MindieLinear):
            for x in states:
                linear(decoder.norm(x))
        yield from _linear_tensors(linear, "lm_head")


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
