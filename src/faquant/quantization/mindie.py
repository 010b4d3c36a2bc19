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

from ..checkpoint.pieces import Keep, keep_nothing
from ..config import ModelConfig
from ..errors import CheckpointError
from ..kernels.pages import float_attend
from ..model.decoder import LINEARS, Attention, DecoderLayer, RMSNorm, build_layer
from ..model.linear import FloatLinear, Linear
from ..model.load import float_linear
from ..model.opening import DTYPES, has_bias
from ..model.rope import Rope
from ..model.schemes import Checked
from ..recipe import Recipe
from . import w8a8
from .layerwise import GROUPS, NamedTensor
from .percentile import K_RATIO, Q_RATIO, V_RATIO, HeadObserver
from .rounding import Gram, round_to_nearest, round_with_compensation
from .smoothing import Span, fold


class MindieLinear:
    """A float linear under calibration: it observes its input, and computes with weight and input rounded."""

    def __init__(self, linear: FloatLinear) -> None:
        self._bias = linear.bias
        self._weight, self._weight_scale = w8a8.quantize_weight(linear.weight)
        self._rounded = w8a8.fake_quantize_weight(linear.weight, self._weight_scale)
        self._observer = w8a8.InputObserver()

    def observe(self, x: Tensor) -> None:
        """Take the range of one batch of inputs into account."""
        self._observer.update(x)

    def __call__(self, x: Tensor) -> Tensor:
        self.observe(x)
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


class SmoothedLinear:
    """A folded float linear under calibration: it counts its inputs for the error compensation, and their range."""

    def __init__(self, linear: FloatLinear, gram: Gram, span: Span, dtype: torch.dtype, compensate: bool) -> None:
        self._linear = linear
        self._gram = gram
        self._span = span
        self._dtype = dtype
        self._compensate = compensate

    def __call__(self, x: Tensor) -> Tensor:
        return self._linear(x)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self._linear.nbytes

    def tensors(self, name: str, has_bias: bool) -> Iterator[NamedTensor]:
        """What the checkpoint holds of it under `name`; a bias that the model has not stands in quant_bias alone."""
        weight, bias, dtype = self._linear.weight, self._linear.bias, self._dtype
        if self._compensate:
            rounded = round_with_compensation(weight.double(), self._gram.transformed(None, 0))
        else:
            rounded = round_to_nearest(weight)
        low, high = self._span.ends()
        input_scale, input_offset = w8a8.input_scale_offset(low.amin().to(dtype), high.amax().to(dtype))
        # Not rounded to the dtype as the tool's: the runtime reads this one, and not weight_scale.
        scale = input_scale.float() * rounded.scale.squeeze(1)
        weight_scale = rounded.scale.to(dtype)
        yield f"{name}.weight", "W8A8", rounded.weight
        if has_bias and bias is not None:
            yield f"{name}.bias", "FLOAT", bias.to(dtype)
        yield f"{name}.weight_scale", "W8A8", weight_scale
        yield f"{name}.weight_offset", "W8A8", torch.zeros_like(weight_scale)
        yield f"{name}.input_scale", "W8A8", input_scale
        yield f"{name}.input_offset", "W8A8", input_offset
        yield f"{name}.quant_bias", "W8A8", w8a8.quant_bias(rounded.weight, input_offset, scale, bias)
        yield f"{name}.deq_scale", "W8A8", w8a8.pack_deq_scale(scale, dtype)


class MindieAttention:
    """Float attention over one prompt, whose q, k and v are observed: what Decoder calls with each layer's."""

    def __init__(self, window: int | None = None) -> None:
        self._window = window
        self._observers = {"q": HeadObserver(Q_RATIO), "k": HeadObserver(K_RATIO), "v": HeadObserver(V_RATIO)}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for observer, states in zip(self._observers.values(), (q, k, v), strict=True):
            observer.update(states)
        return eager_attention(q, k, v, self._window)

    def tensors(self, name: str, dtype: torch.dtype | None = None) -> Iterator[NamedTensor]:
        """Scales and (zero) offsets of the attention module `name`; dtype: None for that of the states."""
        scales = {kind: observer.scale().to(dtype) for kind, observer in self._observers.items()}
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

    head_blocks = 1

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
            return [*attention.tensors(f"{name}.self_attn"), *_layer_tensors(calibrating, name, self.config)], after

    def finish(
        self,
        streams: list[Tensor],
        keep: Keep = keep_nothing,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[NamedTensor]:
        """What stands behind the last layer, which takes so little time that nothing of it is kept."""
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
                    linear.observe(norm(x))
            return [*tensors, *_linear_tensors(linear, "lm_head")]

    def _tensor(self, name: str) -> Tensor:
        return self.checked.finite(name).to(self.dtype)

    def _linear(self, name: str) -> FloatLinear:
        return float_linear(self.checked, self.config, name, self.dtype)


class SmoothingQuantizer(MindieQuantizer):
    """Writes the same tensors, with outlier suppression folded in (smoothing.py). Streams are float32, those of the
    float model; nothing depends on the order of the prompts."""

    def __init__(self, config: ModelConfig, checked: Checked, recipe: Recipe) -> None:
        super().__init__(config, checked, recipe)
        self.compensate = recipe.linear is not None and recipe.linear.rounding == "gptq"

    def start(self, prompts: Iterable[Tensor]) -> tuple[list[NamedTensor], list[Tensor]]:
        """As MindieQuantizer's."""
        tensors, streams = super().start(prompts)
        return tensors, [stream.float() for stream in streams]

    def layer(self, index: int, streams: list[Tensor]) -> tuple[list[NamedTensor], list[Tensor]]:
        """The tensors of one layer, and the streams that leave it.

        Raises:
            CheckpointError: a weight or an activation is not finite.
        """
        name = f"model.layers.{index}"
        with _located(name):
            folded = self.folded(index, streams)
            watched, groups = self._watched(folded, name)
            attention = MindieAttention(self.config.sliding_windows[index])
            after = [self._run(watched, x, attention) for x in streams]
            layer = self._smoothed(folded, name, groups)
            return [*attention.tensors(f"{name}.self_attn", self.dtype), *self._tensors(layer, name)], after

    def finish(
        self,
        streams: list[Tensor],
        keep: Keep = keep_nothing,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[NamedTensor]:
        """As MindieQuantizer's."""
        return super().finish([stream.to(self.dtype) for stream in streams], keep, progress)

    def folded(self, index: int, streams: list[Tensor]) -> DecoderLayer:
        """The float layer with everything folded into it that can be, from what it does to the streams."""
        layer = build_layer(
            self.config,
            index,
            self._tensor,
            lambda name: float_linear(self.checked, self.config, name, torch.float32),
            self.checked.__contains__,
        )
        spans = Span(), Span()
        values: list[Tensor] = []
        outputs: list[Tensor] = []
        window = self.config.sliding_windows[index]

        def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            values.append(v)
            outputs.append(float_attend(q, k, v, 0, window))
            return outputs[-1]

        seen = replace(layer, q_proj=_Seen(layer.q_proj, spans[0]), gate_proj=_Seen(layer.gate_proj, spans[1]))
        for x in streams:
            self._run(seen, x, attend)

        def can_shift(*kinds: str) -> bool:
            names = {module.rpartition(".")[2]: f"model.layers.{index}.{module}" for module in LINEARS}
            return all(not self.is_float(names[kind]) or has_bias(self.config, names[kind]) for kind in kinds)

        return fold(layer, spans, values, outputs, self.dtype, can_shift)

    def _run(self, layer: DecoderLayer, x: Tensor, attention: Attention) -> Tensor:
        return layer(x, Rope(self.config, len(x)).tables(torch.arange(len(x))), attention)

    def _watched(self, layer: DecoderLayer, name: str) -> tuple[DecoderLayer, dict[str, tuple[Gram, Span]]]:
        """The layer with the first linear of each group observed, and what is observed by the names of all."""
        groups: dict[str, tuple[Gram, Span]] = {}
        chosen: dict[str, Any] = {}
        for group in GROUPS:
            if all(self.is_float(f"{name}.{module}") for module in group):
                continue
            kinds = [module.rpartition(".")[2] for module in group]
            first = _float_linear(getattr(layer, kinds[0]))
            found = Gram(first.weight.shape[1]), Span()
            chosen[kinds[0]] = _Seen(first, found[1], found[0])
            groups |= dict.fromkeys(kinds, found)
        return replace(layer, **chosen), groups

    def _smoothed(self, layer: DecoderLayer, name: str, groups: dict[str, tuple[Gram, Span]]) -> DecoderLayer:
        """The layer with those linears replaced that do not stay float."""
        chosen: dict[str, Any] = {
            module.rpartition(".")[2]: SmoothedLinear(
                _float_linear(getattr(layer, module.rpartition(".")[2])),
                *groups[module.rpartition(".")[2]],
                self.dtype,
                self.compensate,
            )
            for module in LINEARS
            if not self.is_float(f"{name}.{module}")
        }
        return replace(layer, **chosen)

    def _tensors(self, layer: DecoderLayer, name: str) -> Iterator[NamedTensor]:
        for key, kind, tensor in _layer_tensors(layer, name, self.config):
            # Norms' biases are float32 in every checkpoint of the tool.
            keep = kind != "FLOAT" or key.endswith("layernorm.bias")
            yield key, kind, tensor if keep else tensor.to(self.dtype)


class _Seen:
    """A float linear that shows its inputs."""

    def __init__(self, linear: Linear, span: Span, gram: Gram | None = None) -> None:
        self.linear = linear
        self.span = span
        self.gram = gram

    def __call__(self, x: Tensor) -> Tensor:
        if not x.isfinite().all():
            raise CheckpointError("Calibration overflowed: activations are not finite. Are the weights damaged?")
        self.span.add(x)
        if self.gram is not None:
            self.gram.add(x)
        return self.linear(x)

    @property
    def nbytes(self) -> int:
        return self.linear.nbytes


def _calibrating(layer: DecoderLayer, name: str, is_float: Callable[[str], bool]) -> DecoderLayer:
    """The layer, with those linears replaced that do not stay float."""
    names = {module.rpartition(".")[2]: f"{name}.{module}" for module in LINEARS}
    chosen: dict[str, Any] = {
        short: MindieLinear(_float_linear(getattr(layer, short))) for short in names if not is_float(names[short])
    }
    return replace(layer, **chosen)


def _layer_tensors(layer: DecoderLayer, name: str, config: ModelConfig) -> Iterator[NamedTensor]:
    for module in LINEARS:
        short = module.rpartition(".")[2]
        linear = getattr(layer, short)
        if isinstance(linear, SmoothedLinear):
            yield from linear.tensors(f"{name}.{module}", has_bias(config, f"{name}.{module}"))
        else:
            yield from _linear_tensors(linear, f"{name}.{module}")
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
