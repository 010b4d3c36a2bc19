"""msModelSlim's format with outlier suppression and error compensation, neither of which needs support in MindIE."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...checkpoint.model_config import LINEARS, ModelConfig
from ...checkpoint.pieces import Keep, keep_nothing
from ...kernels.backend import Linear, Norm
from ...kernels.cpu import CpuBackend
from ...kernels.tables import FloatTable
from ...kernels.torch_backend import TorchBackend, TorchRMSNorm
from ...model.decoder import DecoderLayer, build_layer
from ...recipe import Recipe
from ..layerwise import GROUPS
from ..observe import through
from ..rounding import Gram, TransformedGram, compensations
from ..tensors import NamedTensor, SourceTensors, stored_of
from .attention import MindieAttention
from .linears import ObservedLinear, SmoothedLinear
from .plain import MindieQuantizer
from .smoothing import Span, float_linear_of, fold
from .tensors import layer_tensors, located


class SmoothingQuantizer(MindieQuantizer):
    """Writes the same tensors, with outlier suppression folded in (smoothing.py). Streams are float32, from the float
    model; the result does not depend on the order of the prompts."""

    def __init__(self, config: ModelConfig, checked: SourceTensors, recipe: Recipe) -> None:
        super().__init__(config, checked, recipe)
        self.compensate = recipe.linear is not None and recipe.linear.rounding == "gptq"

    def start(self, prompts: Iterable[Tensor]) -> tuple[list[NamedTensor], list[Tensor]]:
        """As in MindieQuantizer."""
        tensors, streams = super().start(prompts)
        return tensors, [stream.float() for stream in streams]

    def layer(self, index: int, streams: list[Tensor]) -> tuple[list[NamedTensor], list[Tensor]]:
        """The tensors of one layer, and the streams after it.

        Raises:
            CheckpointError: a weight or an activation is not finite.
        """
        name = f"model.layers.{index}"
        with located(name):
            folded = self.folded(index, streams)
            observed, groups = self._with_observers(folded, name)
            attention = MindieAttention()
            after = through(self.config, on_kernels(observed), streams, lambda q, k, v, _: attention.observe(q, k, v))
            layer = self._smoothed(folded, name, groups)
            return [*attention.tensors(f"{name}.self_attn", self.dtype), *self._tensors(layer, name)], after

    def finish(
        self,
        streams: list[Tensor],
        keep: Keep = keep_nothing,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[NamedTensor]:
        """As in MindieQuantizer."""
        return super().finish([stream.to(self.dtype) for stream in streams], keep, progress)

    def folded(self, index: int, streams: list[Tensor]) -> DecoderLayer:
        """The float layer with all smoothing folded in, calibrated on the streams."""
        backend = TorchBackend()
        layer = build_layer(
            self.config,
            index,
            backend,
            self._tensor,
            lambda name: backend.linear(self.checked.float_table(name, self.config)),
            self.checked.__contains__,
        )
        spans = Span(), Span()
        values: list[Tensor] = []
        outputs: list[Tensor] = []

        def look(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
            values.append(v)
            outputs.append(out)

        seen = replace(
            layer, q_proj=ObservedLinear(layer.q_proj, spans[0]), gate_proj=ObservedLinear(layer.gate_proj, spans[1])
        )
        through(self.config, on_kernels(seen), streams, look)

        def can_shift(*kinds: str) -> bool:
            names = {module.rpartition(".")[2]: f"model.layers.{index}.{module}" for module in LINEARS}
            return all(not self.is_float(names[kind]) or self.config.has_bias(names[kind]) for kind in kinds)

        return fold(layer, spans, values, outputs, self.dtype, can_shift)

    def _with_observers(self, layer: DecoderLayer, name: str) -> tuple[DecoderLayer, dict[str, tuple[Gram, Span]]]:
        """The layer with observers on the first linear of each group, and the observers by the names of all linears."""
        groups: dict[str, tuple[Gram, Span]] = {}
        chosen: dict[str, Any] = {}
        for group in GROUPS:
            if all(self.is_float(f"{name}.{module}") for module in group):
                continue
            kinds = [module.rpartition(".")[2] for module in group]
            first = float_linear_of(getattr(layer, kinds[0]))
            found = Gram(first.weight.shape[1]), Span()
            chosen[kinds[0]] = ObservedLinear(first, found[1], found[0])
            groups |= dict.fromkeys(kinds, found)
        return replace(layer, **chosen), groups

    def _smoothed(self, layer: DecoderLayer, name: str, groups: dict[str, tuple[Gram, Span]]) -> DecoderLayer:
        """The layer with all linears replaced that are quantized."""
        # Linears with the same inputs share what their errors are compensated with.
        grams = {id(gram): TransformedGram(gram) for gram, _ in groups.values()} if self.compensate else {}
        found = dict(zip(grams, compensations(list(grams.values())), strict=True))
        chosen: dict[str, Any] = {}
        for module in LINEARS:
            if not self.is_float(f"{name}.{module}"):
                kind = module.rpartition(".")[2]
                gram, span = groups[kind]
                linear = float_linear_of(getattr(layer, kind))
                chosen[kind] = SmoothedLinear(linear, found.get(id(gram)), span, self.dtype)
        return replace(layer, **chosen)

    def _tensors(self, layer: DecoderLayer, name: str) -> Iterator[NamedTensor]:
        for key, kind, tensor in layer_tensors(layer, name, self.config):
            # msModelSlim stores the biases of norms in float32.
            keep = kind != "FLOAT" or key.endswith("layernorm.bias")
            yield key, kind, tensor if keep else tensor.to(self.dtype)


def on_kernels(layer: DecoderLayer) -> DecoderLayer:
    """The same layer with its linears and norms on the CPU kernels."""
    backend = CpuBackend()

    def linear(part: Linear) -> Linear:
        if isinstance(part, ObservedLinear):
            return ObservedLinear(linear(part.linear), part.span, part.gram)
        plain = float_linear_of(part)
        return backend.linear(
            FloatTable(stored_of(plain.weight), None if plain.bias is None else stored_of(plain.bias))
        )

    def norm(part: Norm | None) -> Norm | None:
        if not isinstance(part, TorchRMSNorm):
            return part
        return backend.norm(stored_of(part.weight), part.eps, None if part.bias is None else stored_of(part.bias))

    names = [module.rpartition(".")[2] for module in LINEARS]
    chosen: dict[str, Any] = {name: linear(getattr(layer, name)) for name in names}
    norms = ("attention_norm", "mlp_norm", "q_norm", "k_norm")
    chosen |= {name: norm(getattr(layer, name)) for name in norms}
    return replace(layer, rope=backend.rope, gated=backend.silu_times, **chosen)
