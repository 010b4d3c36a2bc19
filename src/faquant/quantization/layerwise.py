"""faquant's own recipes, layer by layer: observe the float layer, fold rotations and equalizers, round the weights."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..checkpoint.model_config import ModelConfig
from ..checkpoint.pieces import Keep, Tensors, keep_nothing
from ..formats.faquant.metadata import Metadata, dynamic_type
from ..kernels import parallel
from ..kernels.arrays import Floats
from ..kernels.backend import Backend, Linear
from ..kernels.cpu import CpuBackend
from ..kernels.scheme import AttentionScheme
from ..kernels.tables import ASYMMETRIC_INPUT_STEPS, INPUT_STEPS, WIDE_INPUT_STEPS
from ..model.decoder import build_layer, build_norm
from ..recipe import LinearRecipe, Recipe
from . import attention, rotate
from .observe import states_through, together
from .rounding import (
    Gram,
    QuantizedWeight,
    TransformedGram,
    balance,
    by_outputs,
    compensations,
    round_to_nearest,
    round_with_compensation,
)
from .schemes import scheme_tensors
from .tensors import NamedTensor, SourceTensors

ROWS = 4096
"""Outputs of a linear that are saved together."""

GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""The linears of a layer; those of a group have the same input."""


class Observed(NamedTuple):
    """q [tokens, Hq, D], k and v [tokens, Hkv, D] of one float layer after RoPE, for each prompt, and the Gram matrices
    of its linears' inputs, by the first linear of each group."""

    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    grams: dict[str, Gram]


class _GramLinear:
    """A float linear that adds its inputs, transformed by `fold`, to a Gram matrix."""

    is_int8 = False

    def __init__(self, linear: Linear, gram: Gram, fold: Callable[[Tensor], Tensor]) -> None:
        self.linear = linear
        self.gram = gram
        self.fold = fold

    def __call__(self, x: Tensor) -> Tensor:
        self.gram.add(self.fold(x))
        return self.linear(x)

    @property
    def nbytes(self) -> int:
        return self.linear.nbytes


class LayerQuantizer:
    """Quantizes by one of faquant's recipes. Streams are the calibration prompts' residual streams, [tokens, hidden]
    each. `schemes` are kept instead of calibrated, if the recipe has no attention. `backend` runs the float layers, but
    not their attention; the result is the same on each."""

    def __init__(
        self,
        config: ModelConfig,
        checked: SourceTensors,
        recipe: Recipe,
        metadata: Metadata,
        schemes: Sequence[AttentionScheme | None] | None = None,
        backend: Backend | None = None,
    ) -> None:
        self.config = config
        self._backend = backend or CpuBackend()
        self.checked = checked
        self.recipe = recipe
        self.metadata = metadata
        self._schemes = schemes
        self._quantized = recipe.quantized(config.linears)
        self._input_blocks = metadata.input_blocks

    def start(self, prompts: Iterable[Tensor]) -> tuple[list[NamedTensor], list[Tensor]]:
        """The embedding as stored, and the streams into the first layer, for prompts of int64 ids [tokens]."""
        embedding = self._tensor("model.embed_tokens.weight")
        streams = [embedding[prompt].float() * self.config.embedding_multiplier for prompt in prompts]
        if self.metadata.residual_rotation:
            embedding = rotate.rotate_residual(embedding.double()).to(embedding.dtype)
        return [("model.embed_tokens.weight", "FLOAT", embedding)], streams

    def layer(self, index: int, streams: list[Tensor]) -> tuple[list[NamedTensor], list[Tensor]]:
        """The tensors of one layer, and the streams after it."""
        observed, streams = self.observe(index, streams)
        return list(self.tensors(index, observed)), streams

    @property
    def head_blocks(self) -> int:
        """Number of blocks of outputs that `finish` rounds one after another; 1 for a float head."""
        return -(-self.config.vocab_size // ROWS) if self._is_quantized("lm_head") else 1

    def finish(
        self,
        streams: list[Tensor],
        keep: Keep = keep_nothing,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[NamedTensor]:
        """The tensors after the last layer. `progress` is called with the number of finished blocks of the head."""
        gram = equalizer = None
        if self._is_quantized("lm_head"):
            kept = keep("head-inputs", partial(self._head_inputs, streams))
            gram = Gram.of(kept["gram"], kept["peaks"], int(kept["tokens"]))
            equalizer = kept.get("equalizer")
        tensors = [("model.norm.weight", "FLOAT", self._norm("model.norm", equalizer))]
        if "lm_head.weight" in self.checked or self.metadata.residual_rotation or self._is_quantized("lm_head"):
            (compensation,) = self._compensations([(("lm_head",), gram, equalizer)])
            tensors += self._linear_tensors("lm_head", compensation, equalizer, None, keep, progress)
        return tensors

    def _head_inputs(self, streams: list[Tensor]) -> Tensors:
        """The Gram matrix of the head's inputs, and the equalizer if there is one."""

        def tensor(name: str) -> Floats:
            return self._float_tensor(name).numpy()

        norm = build_norm("model.norm", self.config, self._backend, tensor, self.checked.__contains__)
        gram = Gram(self.config.hidden_size)
        for some in together(streams):
            gram.add(self._folded_input("lm_head", norm(torch.cat(some))))
        equalizer = self._equalizer(("lm_head",), gram)
        found = {"gram": gram.lower, "peaks": gram.peaks, "tokens": torch.tensor(gram.tokens)}
        return found if equalizer is None else {**found, "equalizer": equalizer}

    def observe(self, index: int, streams: list[Tensor]) -> tuple[Observed, list[Tensor]]:
        """Run one float layer over all prompts; return what was observed, and the streams after it."""
        grams: dict[str, Gram] = {}

        def linear(name: str) -> Linear:
            plain = self._backend.linear(self.checked.float_table(name, self.config))
            if self.recipe.linear is None or not name.endswith(tuple(group[0] for group in GROUPS)):
                return plain
            grams[name] = Gram(self.config.linear_shape(name)[1])
            return _GramLinear(plain, grams[name], lambda x: self._folded_input(name, x))

        def tensor(name: str) -> Floats:
            return self._float_tensor(name).numpy()

        layer = build_layer(self.config, index, self._backend, tensor, linear, self.checked.__contains__)
        states, after = states_through(self.config, layer, streams)
        return Observed(*states, grams), after

    def tensors(self, index: int, observed: Observed) -> Iterator[NamedTensor]:
        """The tensors of one layer. Consumes `observed`."""
        prefix, grams = f"model.layers.{index}.", observed.grams
        if self.recipe.attention is not None:
            states = observed.q, observed.k, observed.v
            scheme = attention.calibrate(self.config, self.recipe.attention, *states, self.metadata.v_folded, index)
            yield from scheme_tensors(index, scheme)
        elif self._schemes is not None:
            yield from scheme_tensors(index, self._schemes[index])
        for kept in observed[:3]:
            kept.clear()
        names = {group[0]: tuple(prefix + name for name in group) for group in GROUPS}
        equalizers = {first: self._equalizer(group, grams.get(prefix + first)) for first, group in names.items()}
        found = self._compensations(
            [(group, grams.pop(prefix + first, None), equalizers[first]) for first, group in names.items()]
        )
        for (first, group), compensation in zip(names.items(), found, strict=True):
            for name in group:
                outputs = equalizers["mlp.down_proj"] if name.endswith("up_proj") else None
                yield from self._linear_tensors(name, compensation, equalizers[first], outputs)
        norms = self.config.family.norms
        for norm, reader in ((norms.attention, "self_attn.q_proj"), (norms.mlp, "mlp.gate_proj")):
            if norm is not None:
                yield f"{prefix}{norm}.weight", "FLOAT", self._norm(prefix + norm, equalizers[reader])
        for norm in (norms.attention_output, norms.mlp_output):
            if norm is not None:
                yield f"{prefix}{norm}.weight", "FLOAT", self._tensor(f"{prefix}{norm}.weight")
        for norm in ("q_norm", "k_norm") if self.config.qk_norm else ():
            yield f"{prefix}self_attn.{norm}.weight", "FLOAT", self._tensor(f"{prefix}self_attn.{norm}.weight")

    def _equalizer(self, names: tuple[str, ...], gram: Gram | None) -> Tensor | None:
        """The divisor of the inputs [k] that these linears share; None: none."""
        recipe: LinearRecipe | None = self.recipe.linear
        kind = names[0].rpartition(".")[2]
        # o_proj's input has V's rotation, and the norms' outputs have R1. Without a norm, nothing can take the divisor.
        free = self._norm_before(names[0]) is not None and not self.metadata.residual_rotation
        fixed = kind != "down_proj" and not free
        if gram is None or recipe is None or not recipe.equalize or fixed or not any(map(self._is_quantized, names)):
            return None
        parts = [part for name in names for part in torch.split(self._stored(name), 256)]
        squares = torch.as_tensor(sum(parallel.map_in_order(lambda part: part.double().square().sum(0), parts)))
        if not self._input_block(names[0]):
            return balance(gram.peaks.double(), squares.sqrt())
        inputs = gram.square_sums() / gram.tokens
        if recipe.rounding == "gptq" and all(map(recipe.is_wide, names)):
            inputs = inputs.sqrt()  # only weights lose, and their compensation knows the inputs' sizes
        return balance(inputs, squares).sqrt()

    def _compensations(
        self, groups: Sequence[tuple[tuple[str, ...], Gram | None, Tensor | None]]
    ) -> list[list[Tensor] | None]:
        """For each group of linears, the Gram matrix of their inputs, and the divisor of these: how errors are
        compensated; None if they are not."""
        recipe = self.recipe.linear
        seen = [
            None
            if gram is None or recipe is None or recipe.rounding == "nearest" or not any(map(self._is_quantized, names))
            else TransformedGram(gram, equalizer, self._input_block(names[0]))
            for names, gram, equalizer in groups
        ]
        found = iter(compensations([each for each in seen if each is not None]))
        return [None if each is None else next(found) for each in seen]

    def _norm(self, name: str, equalizer: Tensor | None) -> Tensor:
        weight = self._tensor(f"{name}.weight")
        if self.metadata.residual_rotation:
            return torch.ones_like(weight)
        return weight if equalizer is None else (weight.double() / equalizer).float()

    def _input_block(self, name: str) -> int:
        return self._input_blocks[name.rpartition(".")[2]]

    def _is_quantized(self, name: str) -> bool:
        return name in self._quantized

    def _input_steps(self, name: str) -> float:
        """DynamicTable.input_steps of this linear."""
        recipe = self.recipe.linear or LinearRecipe()
        if recipe.is_wide(name):
            return WIDE_INPUT_STEPS
        return ASYMMETRIC_INPUT_STEPS if recipe.activation == "token_asymmetric" else INPUT_STEPS

    def _linear_tensors(
        self,
        name: str,
        compensation: Sequence[Tensor] | None,
        equalizer: Tensor | None,
        outputs: Tensor | None,
        keep: Keep = keep_nothing,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Iterator[NamedTensor]:
        """One linear with its weights multiplied by `equalizer` [k] and divided by `outputs` [n], and its rotations
        folded in. `progress` is called with the number of rounded blocks of outputs."""
        stored = self._stored(name)
        bias = self._tensor(f"{name}.bias") if self.config.linears[name].has_bias else None
        if bias is not None:
            bias = self._folded_bias(name, bias.double())
            bias = bias if outputs is None else bias / outputs
        quantized = self._is_quantized(name)
        block = self._input_block(name) if quantized else 0
        # Stored in 16 bits, scaled values would be rounded again.
        dtype = stored.dtype if equalizer is None and outputs is None else torch.float32
        weights, scales = [], []

        norm = self._norm_before(name) if self.metadata.residual_rotation else None
        gamma = None if norm is None else self._tensor(f"{norm}.weight").double()
        mixed = self._mixes_outputs(name)

        def folded(rows: slice) -> Tensor:
            weight = self._folded(name, stored[rows].to(torch.float64, copy=True), gamma)
            if equalizer is not None:
                weight *= equalizer
            if outputs is not None:
                weight /= outputs[rows, None]
            return weight

        def rounded(rows: slice) -> Tensors:
            whole = folded(rows) if mixed else None

            def piece(some: slice) -> QuantizedWeight:
                weight = folded(some) if whole is None else whole[some]
                if block:
                    weight = rotate.rotate_inputs(weight, weight.shape[1], block)
                if compensation is None:
                    return round_to_nearest(weight)
                return round_with_compensation(weight, compensation)

            found = by_outputs(rows, piece)
            return {"weight": found.weight, "scale": found.scale}

        for done, rows in enumerate(parallel.blocks(len(stored), len(stored) if mixed else ROWS), 1):
            if not quantized:
                weights.append(folded(rows).to(dtype))
                continue
            kept = keep(f"{name}-{rows.start}", partial(rounded, rows))
            weights.append(kept["weight"])
            scales.append(kept["scale"])
            progress(done)
        if not quantized:
            yield f"{name}.weight", "FLOAT", torch.cat(weights)
            if bias is not None:
                yield f"{name}.bias", "FLOAT", bias.to(dtype)
            return
        kind = dynamic_type(bool(block), self._input_steps(name))
        scale = torch.cat(scales)
        yield f"{name}.weight", kind, torch.cat(weights)
        yield f"{name}.weight_scale", kind, scale
        yield f"{name}.weight_offset", kind, torch.zeros_like(scale)
        if bias is not None:
            yield f"{name}.bias", "FLOAT", bias.float()

    def _mixes_outputs(self, name: str) -> bool:
        """Whether a rotation mixes the outputs of this linear, so that they must be folded together."""
        folds_values = self.metadata.v_folded and name.endswith("v_proj")
        return folds_values or (self.metadata.residual_rotation and self._norm_before(name) is None)

    def _folded(self, name: str, weight: Tensor, gamma: Tensor | None) -> Tensor:
        """The float64 weight with the rotations R1 and R2 folded in; `gamma` [k] is the weight of the norm before the
        linear, if R1 folds it in."""
        metadata, dim = self.metadata, self.config.head_dim
        kind = name.rpartition(".")[2]
        if gamma is not None:
            weight = rotate.rotate_residual(weight * gamma)
        if metadata.v_folded and kind == "v_proj":
            weight = rotate.rotate_head_outputs(weight, dim, metadata.v_block)
        if metadata.v_folded and kind == "o_proj":
            weight = rotate.rotate_inputs(weight, dim, metadata.v_block)
        if metadata.residual_rotation and gamma is None:
            weight = rotate.rotate_residual_outputs(weight)
        return weight

    def _folded_bias(self, name: str, bias: Tensor) -> Tensor:
        metadata = self.metadata
        if metadata.v_folded and name.endswith("v_proj"):
            bias = rotate.rotate_head_outputs(bias, self.config.head_dim, metadata.v_block)
        if metadata.residual_rotation and self._norm_before(name) is None:
            bias = rotate.rotate_residual(bias)
        return bias

    def _folded_input(self, name: str, x: Tensor) -> Tensor:
        """The input x [tokens, k] of a float linear, transformed to the input of the linear with R1 and R2 folded
        in."""
        metadata, norm = self.metadata, self._norm_before(name)
        if metadata.residual_rotation and norm is not None:
            weight = self._float_tensor(f"{norm}.weight")
            # Where the norm's weight is 0, x is 0, and the divisor does not matter.
            return rotate.rotate_residual(x / weight.masked_fill(weight == 0, 1.0))
        if metadata.v_folded and name.endswith("o_proj"):
            return rotate.rotate_inputs(x, self.config.head_dim, metadata.v_block)
        return x

    def _norm_before(self, name: str) -> str | None:
        """The norm before the linear, or None if there is none."""
        prefix, _, kind = name.rpartition(".")
        if name == "lm_head":
            return "model.norm"
        if kind in ("o_proj", "down_proj"):
            return None
        norms = self.config.family.norms
        norm = norms.mlp if prefix.endswith("mlp") else norms.attention
        return None if norm is None else f"{prefix.rpartition('.')[0]}.{norm}"

    def _stored(self, name: str) -> Tensor:
        tied = name == "lm_head" and "lm_head.weight" not in self.checked
        return self._tensor("model.embed_tokens.weight" if tied else f"{name}.weight")

    def _tensor(self, name: str) -> Tensor:
        return self.checked.finite(name)

    def _float_tensor(self, name: str) -> Tensor:
        return self._tensor(name).float()
