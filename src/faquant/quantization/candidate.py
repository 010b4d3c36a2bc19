"""Quantized models that are never written, to measure recipes before one is chosen."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache

from torch import Tensor

from ..checkpoint.tensors import TensorDict
from ..formats.base import float_table
from ..formats.checked import Checked
from ..formats.faquant.attention import read_scheme
from ..formats.msmodelslim.linears import dynamic_table
from ..kernels.arrays import Stored
from ..kernels.backend import Linear
from ..kernels.cpu import CpuBackend
from ..kernels.scheme import AttentionScheme
from ..model.decoder import Decoder, DecoderLayer, build_embedding, build_layer, build_norm
from ..model.lazy import LazyLinear, LazySequence
from ..model.load import Model
from .layerwise import LayerQuantizer, Observed
from .tensors import NamedTensor, stored_of

_BACKEND = CpuBackend()
"""Candidates run on the kernels that would serve their checkpoints."""


class Calibration:
    """Runs the float layers over the calibration prompts, once for all candidates, one layer at a time, in order."""

    def __init__(self, quantizer: LayerQuantizer, prompts: Sequence[Tensor]) -> None:
        _, self.streams = quantizer.start(prompts)
        self._quantizer = quantizer
        self._observed: Observed | None = None
        self._next = 0

    def layer(self, index: int) -> Observed:
        """What was observed in a layer: the next one, or the last one again.

        Raises:
            ValueError: it is neither.
        """
        if index == self._next:
            self._observed, self.streams = self._quantizer.observe(index, self.streams)
            self._next += 1
        if self._observed is None or index != self._next - 1:
            raise ValueError(f"layers must be run in order: the next one is {self._next}, not {index}")
        q, k, v, grams = self._observed
        return Observed(list(q), list(k), list(v), dict(grams))


def with_attention(source: Model, quantizer: LayerQuantizer, seen: Calibration) -> Model:
    """The float model `source` with the attention of `quantizer`'s recipe; the linears stay float."""
    config = quantizer.config

    @cache
    def scheme(index: int) -> AttentionScheme | None:
        tensors = {name: stored_of(tensor) for name, _, tensor in quantizer.tensors(index, seen.layer(index))}
        return read_scheme(Checked(TensorDict(tensors)), config, index, quantizer.metadata)

    return Model(
        config, source.decoder, LazySequence(scheme, config.num_layers), config.max_position, backend=source.backend
    )


class Candidate:
    """The model that `quantizer`'s recipe would write. The layers of `model` are quantized as they are run, from the
    first to the last; norm and head after them are float until `finish`. `seen` is shared by the candidates that run
    together. Without `attention`, only the linears are quantized."""

    def __init__(self, quantizer: LayerQuantizer, seen: Calibration, attention: bool = True) -> None:
        self._quantizer, self._seen = quantizer, seen
        self._attention = attention and quantizer.recipe.attention is not None
        config, checked = quantizer.config, quantizer.checked
        self._schemes: list[AttentionScheme | None] = [None] * config.num_layers
        ((_, _, embedding),), _ = quantizer.start([])

        def tensor(name: str) -> Stored:
            return stored_of(checked.finite(name))

        decoder = Decoder(
            config,
            build_embedding(config, _BACKEND, lambda name: stored_of(embedding)),
            LazySequence(self._layer, config.num_layers),
            build_norm("model.norm", config, _BACKEND, tensor, checked.__contains__),
            LazyLinear(lambda: _BACKEND.linear(checked.float_table("lm_head", config))),
        )
        self.model = Model(config, decoder, self._schemes, config.max_position, metadata=quantizer.metadata)
        self.weight_bytes = embedding.nbytes

    def finish(self) -> None:
        """Quantize what follows the last layer, after that layer was run."""
        checkpoint, linear = self._read_back(self._quantizer.finish(self._seen.streams))
        decoder = self.model.decoder
        if "lm_head.weight" in checkpoint:
            decoder.lm_head = linear("lm_head")
        decoder.norm = build_norm(
            "model.norm", self._quantizer.config, _BACKEND, checkpoint.finite, checkpoint.__contains__
        )

    def _layer(self, index: int) -> DecoderLayer:
        quantizer = self._quantizer
        checkpoint, linear = self._read_back(quantizer.tensors(index, self._seen.layer(index)))
        if self._attention:
            self._schemes[index] = read_scheme(checkpoint, quantizer.config, index, quantizer.metadata)
        return build_layer(quantizer.config, index, _BACKEND, checkpoint.finite, linear, checkpoint.__contains__)

    def _read_back(self, tensors: Iterable[NamedTensor]) -> tuple[Checked, Callable[[str], Linear]]:
        """Read these tensors as from a checkpoint."""
        kept, types = {}, {}
        for name, kind, tensor in tensors:
            kept[name], types[name] = stored_of(tensor), kind
        self.weight_bytes += sum(tensor.nbytes for tensor in kept.values())
        checked, config, metadata = Checked(TensorDict(kept)), self._quantizer.config, self._quantizer.metadata

        def linear(name: str) -> Linear:
            kind = types[f"{name}.weight"]
            if kind == "FLOAT":
                return _BACKEND.linear(float_table(checked, config, name))
            return _BACKEND.linear(dynamic_table(checked, config, name, kind, metadata.input_block(name)))

        return checked, linear
