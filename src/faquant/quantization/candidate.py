"""Quantized models that are never written: what a recipe would give, to be measured before it is chosen."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from ..checkpoint.tensors import TensorDict
from ..formats.schemes import Checked, read_scheme
from ..kernels.scheme import AttentionScheme
from ..model.decoder import Decoder, DecoderLayer, RMSNorm, build_layer
from ..model.lazy import LazySequence
from ..model.linear import FloatLinear, Linear
from ..model.load import Model, float_linear, read_linear
from .layerwise import LayerQuantizer, NamedTensor, Observed


class Calibration:
    """The float layers run over the calibration prompts once for all candidates, one layer at a time, in order."""

    def __init__(self, quantizer: LayerQuantizer, prompts: Sequence[Tensor]) -> None:
        _, self.streams = quantizer.start(prompts)
        self._quantizer = quantizer
        self._observed: Observed | None = None
        self._next = 0

    def layer(self, index: int) -> Observed:
        """What a layer saw: the next one, or the last one again.

        Raises:
            ValueError: another layer.
        """
        if index == self._next:
            self._observed, self.streams = self._quantizer.observe(index, self.streams)
            self._next += 1
        if self._observed is None or index != self._next - 1:
            raise ValueError(f"layer {index} was asked for, but {self._next} is the next one")
        q, k, v, grams = self._observed
        return Observed(list(q), list(k), list(v), dict(grams))


def with_attention(source: Model, quantizer: LayerQuantizer, seen: Calibration) -> Model:
    """The float model `source` with the attention of `quantizer`'s recipe, which leaves the linears float."""
    config = quantizer.config

    @cache
    def scheme(index: int) -> AttentionScheme | None:
        tensors = {name: tensor for name, _, tensor in quantizer.tensors(index, seen.layer(index))}
        return read_scheme(Checked(TensorDict(tensors)), config, index, quantizer.metadata)

    return Model(config, source.decoder, LazySequence(scheme, config.num_layers), config.max_position)


class Candidate:
    """What `quantizer`'s recipe would make of a model. The layers of `model` are quantized as they are run, from the
    first to the last; `finish` then gives it its head. `seen` is shared by the candidates that are run together.
    Without `attention` only the linears are quantized."""

    def __init__(self, quantizer: LayerQuantizer, seen: Calibration, attention: bool = True) -> None:
        self._quantizer, self._seen = quantizer, seen
        self._attention = attention and quantizer.recipe.attention is not None
        config, checked = quantizer.config, quantizer.checked
        self._schemes: list[AttentionScheme | None] = [None] * config.num_layers
        ((_, _, embedding),), _ = quantizer.start([])
        decoder = Decoder(
            config,
            embedding,
            LazySequence(self._layer, config.num_layers),
            RMSNorm(checked.finite("model.norm.weight").float(), config.rms_norm_eps),
            float_linear(checked, config, "lm_head", torch.float32),
        )
        self.model = Model(config, decoder, self._schemes, config.max_position, metadata=quantizer.metadata)
        self.weight_bytes = embedding.nbytes

    def finish(self) -> None:
        """Quantize what stands behind the last layer, once that was run."""
        made, linear = self._made(self._quantizer.finish(self._seen.streams))
        decoder = self.model.decoder
        if "lm_head.weight" in made:
            decoder.lm_head = linear("lm_head")
        fused = not isinstance(decoder.lm_head, FloatLinear)
        decoder.norm = RMSNorm(made.finite("model.norm.weight").float(), decoder.norm.eps, fused=fused)

    def _layer(self, index: int) -> DecoderLayer:
        quantizer = self._quantizer
        made, linear = self._made(quantizer.tensors(index, self._seen.layer(index)))
        if self._attention:
            self._schemes[index] = read_scheme(made, quantizer.config, index, quantizer.metadata)
        return build_layer(quantizer.config, index, made.finite, linear, made.__contains__)

    def _made(self, tensors: Iterable[NamedTensor]) -> tuple[Checked, Callable[[str], Linear]]:
        """What the reader of a checkpoint makes of these tensors."""
        kept, types = {}, {}
        for name, kind, tensor in tensors:
            kept[name], types[name] = tensor, kind
        self.weight_bytes += sum(tensor.nbytes for tensor in kept.values())
        checked = Checked(TensorDict(kept))
        return checked, partial(read_linear, checked, self._quantizer.config, types, self._quantizer.metadata)
