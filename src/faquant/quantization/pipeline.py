"""Layer by layer from a float directory to a quantized one.

Only one layer's weights are in memory at a time, with the calibration prompts' residual stream before and after it.
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..checkpoint.description import Description
from ..checkpoint.metadata import R4_TYPE, Metadata, model_fingerprint
from ..checkpoint.tensors import TensorFiles
from ..checkpoint.write import ShardWriter, check_storable, copy_side_files, output_directory, side_files, write_json
from ..config import ModelConfig
from ..errors import UnsupportedError, UsageError
from ..kernels.pages import float_attend
from ..kernels.reference import MAX_DOWN_BLOCK, hadamard_block
from ..kernels.scheme import AttentionScheme
from ..model.decoder import LINEARS, RMSNorm, build_layer
from ..model.linear import FloatLinear, Linear
from ..model.load import float_linear, load_float
from ..model.opening import DTYPES, has_bias, layer_linears, open_checkpoint
from ..model.rope import Rope
from ..model.schemes import Checked
from ..recipe import Recipe
from . import attention, rotate
from .calibration import fingerprint
from .mindie import calibrate_mindie
from .rounding import Gram, round_to_nearest, round_with_compensation

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def quantize(
    source: Path,
    target: Path,
    recipe: Recipe,
    calibration: Sequence[Sequence[int]],
    *,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> None:
    """Quantize the float directory `source` into the new directory `target`.

    Args:
        calibration: token ids of each prompt.
        overwrite: replace `target` if it is a model directory already.

    Raises:
        CheckpointError, UnsupportedError: the source cannot be read, or not with this recipe.
        OutputError: the target exists, or cannot be written; nothing is left there.
    """
    opened = open_checkpoint(source)
    config, checked, files = opened.config, opened.checked, opened.checked.files
    if opened.description is not None:
        raise UsageError(f"{source} is quantized already. Name the float model that it was made from.")
    _check_recipe(recipe, config, checked)
    if not calibration:
        raise UsageError("There is nothing to calibrate with: the calibration has no tokens.")
    prompts = [torch.tensor(ids, dtype=torch.int64) for ids in calibration]
    longest = max(len(prompt) for prompt in prompts)
    if longest > config.max_position:
        raise UsageError(
            f"A calibration prompt has {longest} tokens, but the model's context is {config.max_position} tokens."
        )
    side_files(source)  # what cannot be copied is told before the long work
    with output_directory(target, overwrite, keep=source) as directory:
        stem = "quant_model_weights" if recipe.linear is None else "quant_model_weight_w8a8"
        sink = _Sink(ShardWriter(directory, stem))
        raw_config = dict(opened.raw_config)
        if recipe.is_mindie:
            _quantize_mindie(source, config, recipe, calibration, sink, progress)
        else:
            metadata = _metadata(config, recipe, files, calibration)
            _Quantizer(config, checked, recipe, metadata, sink, progress).run(prompts)
            if metadata.residual_rotation:
                raw_config["tie_word_embeddings"] = False
        sink.writer.close()
        description = Description(
            version="1.0.0",
            model_quant_type=_model_quant_type(recipe),
            fa_quant_type="FAQuant" if recipe.attention else None,
            kv_cache_type=None,
            metadata={} if recipe.is_mindie else {"faquant": metadata.model_dump()},
            tensor_types=sink.types,
        )
        write_json(directory / "quant_model_description.json", description.to_json())
        copy_side_files(source, directory)
        # Last, so that no directory without all the rest is taken for a model.
        write_json(directory / "config.json", raw_config)


class _Sink:
    """Collects tensors and what the description says of them."""

    def __init__(self, writer: ShardWriter) -> None:
        self.writer = writer
        self.types: dict[str, str] = {}

    def add(self, name: str, tensor: Tensor, kind: str) -> None:
        check_storable(name, tensor)
        self.writer.add(name, tensor.contiguous())
        self.types[name] = kind


def _quantize_mindie(
    source: Path,
    config: ModelConfig,
    recipe: Recipe,
    calibration: Sequence[Sequence[int]],
    sink: _Sink,
    progress: Progress,
) -> None:
    # The tool calibrates in the checkpoint's own dtype, and so its scales carry that dtype's rounding.
    decoder = load_float(source, DTYPES[config.dtype]).decoder
    is_float = recipe.linear.is_float if recipe.linear else lambda name: True
    total = config.num_layers + 1
    for name, kind, tensor in calibrate_mindie(decoder, calibration, is_float):
        sink.add(name, tensor, kind)
        if name.endswith("post_attention_layernorm.weight"):
            progress(int(name.split(".")[2]) + 1, total)
    progress(total, total)


class _Seen(NamedTuple):
    """q [tokens, Hq, D], k and v [tokens, Hkv, D] of one layer after RoPE, for each prompt."""

    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]


class _Watched:
    """A float linear that counts its inputs, folded as they will be, in a Gram matrix."""

    def __init__(self, linear: FloatLinear, gram: Gram, fold: Callable[[Tensor], Tensor]) -> None:
        self.linear = linear
        self.gram = gram
        self.fold = fold

    def __call__(self, x: Tensor) -> Tensor:
        self.gram.add(self.fold(x))
        return self.linear(x)

    @property
    def nbytes(self) -> int:
        return self.linear.nbytes


class _Quantizer:
    """One run of a recipe of ours."""

    def __init__(
        self,
        config: ModelConfig,
        checked: Checked,
        recipe: Recipe,
        metadata: Metadata,
        sink: _Sink,
        progress: Progress,
    ) -> None:
        self.config = config
        self.checked = checked
        self.recipe = recipe
        self.metadata = metadata
        self.sink = sink
        self.progress = progress

    def run(self, prompts: list[Tensor]) -> None:
        total = self.config.num_layers + 1
        embedding = self._tensor("model.embed_tokens.weight")
        streams = [embedding[prompt].float() for prompt in prompts]
        self._write_embedding(embedding)
        for index in range(self.config.num_layers):
            self.progress(index, total)
            seen, grams, streams = self._observe(index, streams)
            self._write_layer(index, seen, grams)
        self.progress(self.config.num_layers, total)
        self._write_head(streams)
        self.progress(total, total)

    def _observe(self, index: int, streams: list[Tensor]) -> tuple["_Seen", dict[str, Gram], list[Tensor]]:
        """Run one float layer over all prompts: what its attention saw, the Gram matrices of its linears' inputs by
        the linear's name, and the residual streams after it."""
        grams: dict[str, Gram] = {}

        def linear(name: str) -> Linear:
            plain = float_linear(self.checked, self.config, name, torch.float32)
            if not self._is_compensated(name):
                return plain
            shared = name.replace("k_proj", "q_proj").replace("v_proj", "q_proj").replace("up_proj", "gate_proj")
            if shared in grams:
                grams[name] = grams[shared]
                return plain
            grams[name] = Gram(plain.weight.shape[1])
            return _Watched(plain, grams[name], partial(self._fold_input, name))

        layer = build_layer(self.config, index, self._float_tensor, linear, self.checked.__contains__)
        seen = _Seen([], [], [])
        window = self.config.sliding_windows[index]

        def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            for states, x in zip(seen, (q, k, v), strict=True):
                states.append(x)
            return float_attend(q, k, v, 0, window)

        after = [
            layer(stream, Rope(self.config, len(stream)).tables(torch.arange(len(stream))), attend)
            for stream in streams
        ]
        return seen, grams, after

    def _is_compensated(self, name: str) -> bool:
        return self._is_quantized(name) and self.recipe.linear is not None and self.recipe.linear.rounding == "gptq"

    def _tensor(self, name: str) -> Tensor:
        return self.checked.finite(name)

    def _float_tensor(self, name: str) -> Tensor:
        return self._tensor(name).float()

    def _write_embedding(self, embedding: Tensor) -> None:
        if self.metadata.residual_rotation:
            embedding = rotate.rotate_residual(embedding.double()).to(embedding.dtype)
        self.sink.add("model.embed_tokens.weight", embedding, "FLOAT")

    def _write_layer(self, index: int, seen: "_Seen", grams: dict[str, Gram]) -> None:
        prefix = f"model.layers.{index}."
        if self.recipe.attention is not None:
            scheme = attention.calibrate(self.config, self.recipe.attention, *seen, self.metadata.v_folded)
            self._write_scheme(f"{prefix}self_attn.", scheme)
        for name in LINEARS:
            self._write_linear(prefix + name, grams.get(prefix + name))
        for norm in ("input_layernorm", "post_attention_layernorm"):
            self._write_norm(prefix + norm)
        for norm in ("q_norm", "k_norm") if self.config.qk_norm else ():
            name = f"{prefix}self_attn.{norm}.weight"
            self.sink.add(name, self._tensor(name), "FLOAT")

    def _write_scheme(self, prefix: str, scheme: AttentionScheme) -> None:
        tables = {
            "fa_k.center": scheme.k_center,
            "fa_k.equalizer": scheme.k_equalizer,
            "fa_k.scale": scheme.k_scale,
            "fa_v.scale": scheme.v_scale,
        }
        if not any(table is not None for table in tables.values()):
            # Something must say that this layer's attention is quantized.
            tables["fa_k.equalizer"] = torch.ones(self.config.num_kv_heads, self.config.head_dim)
        for name, table in tables.items():
            if table is not None:
                self.sink.add(prefix + name, table, "FAQuant")

    def _write_norm(self, name: str) -> None:
        weight = self._tensor(f"{name}.weight")
        self.sink.add(f"{name}.weight", torch.ones_like(weight) if self.metadata.residual_rotation else weight, "FLOAT")

    def _write_head(self, streams: list[Tensor]) -> None:
        self._write_norm("model.norm")
        gram = None
        if self._is_compensated("lm_head"):
            gram = Gram(self.config.hidden_size)
            norm = RMSNorm(self._float_tensor("model.norm.weight"), self.config.rms_norm_eps)
            for stream in streams:
                gram.add(self._fold_input("lm_head", norm(stream)))
        if "lm_head.weight" in self.checked or self.metadata.residual_rotation or self._is_quantized("lm_head"):
            self._write_linear("lm_head", gram)

    def _is_quantized(self, name: str) -> bool:
        return self.recipe.linear is not None and not self.recipe.linear.is_float(name)

    def _write_linear(self, name: str, gram: Gram | None) -> None:
        """Write one linear with its rotations folded in; `gram` is that of its inputs, where they are compensated."""
        tied = name == "lm_head" and "lm_head.weight" not in self.checked
        stored = self._tensor("model.embed_tokens.weight" if tied else f"{name}.weight")
        bias = self._tensor(f"{name}.bias") if has_bias(self.config, name) else None
        weight, bias = self._fold(name, stored, bias)
        if not self._is_quantized(name):
            self.sink.add(f"{name}.weight", weight.to(stored.dtype), "FLOAT")
            if bias is not None:
                self.sink.add(f"{name}.bias", bias.to(stored.dtype), "FLOAT")
            return
        kind = R4_TYPE if self._rotates_input(name) else "W8A8_DYNAMIC"
        result = round_to_nearest(weight) if gram is None else round_with_compensation(weight, gram)
        self.sink.add(f"{name}.weight", result.weight, kind)
        self.sink.add(f"{name}.weight_scale", result.scale, kind)
        self.sink.add(f"{name}.weight_offset", torch.zeros_like(result.scale), kind)
        if bias is not None:
            self.sink.add(f"{name}.bias", bias.float(), "FLOAT")

    def _rotates_input(self, name: str) -> bool:
        return bool(self.metadata.down_block) and name.endswith("down_proj") and self._is_quantized(name)

    def _norm_before(self, name: str) -> str | None:
        """The norm whose output the linear reads, or None where it reads something else than the residual stream."""
        prefix, _, kind = name.rpartition(".")
        if name == "lm_head":
            return "model.norm"
        if kind in ("o_proj", "down_proj"):
            return None
        layer = prefix.rpartition(".")[0]
        return f"{layer}.{'post_attention_layernorm' if prefix.endswith('mlp') else 'input_layernorm'}"

    def _fold(self, name: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        metadata, dim = self.metadata, self.config.head_dim
        kind, norm = name.rpartition(".")[2], self._norm_before(name)
        weight, bias = weight.double(), None if bias is None else bias.double()
        if metadata.residual_rotation and norm is not None:
            weight = rotate.rotate_residual(weight * self._tensor(f"{norm}.weight").double())
        if metadata.v_folded and kind == "v_proj":
            weight = rotate.rotate_head_outputs(weight, dim, metadata.v_block)
            bias = None if bias is None else rotate.rotate_head_outputs(bias, dim, metadata.v_block)
        if metadata.v_folded and kind == "o_proj":
            weight = rotate.rotate_inputs(weight, dim, metadata.v_block)
        if self._rotates_input(name):
            weight = rotate.rotate_inputs(weight, self.config.intermediate_size, metadata.down_block)
        if metadata.residual_rotation and norm is None:
            weight = rotate.rotate_residual_outputs(weight)
            bias = None if bias is None else rotate.rotate_residual(bias)
        return weight, bias

    def _fold_input(self, name: str, x: Tensor) -> Tensor:
        """The input x [tokens, k] of a float linear, as the linear with its rotations folded in will see it."""
        metadata, norm = self.metadata, self._norm_before(name)
        if metadata.residual_rotation and norm is not None:
            weight = self._float_tensor(f"{norm}.weight")
            # Where the norm's weight is 0, so is x, and any divisor will do.
            return rotate.rotate_residual(x / weight.masked_fill(weight == 0, 1.0))
        if metadata.v_folded and name.endswith("o_proj"):
            return rotate.rotate_inputs(x, self.config.head_dim, metadata.v_block)
        if self._rotates_input(name):
            return rotate.rotate_inputs(x, self.config.intermediate_size, metadata.down_block)
        return x


def _metadata(
    config: ModelConfig,
    recipe: Recipe,
    files: TensorFiles,
    calibration: Sequence[Sequence[int]],
) -> Metadata:
    attention_recipe, linear = recipe.attention, recipe.linear
    block = hadamard_block(config.head_dim)
    longest = max(len(ids) for ids in calibration)
    # Scales and centres hold where keys were seen; a scheme without them holds everywhere.
    everywhere = (
        attention_recipe is None
        or attention_recipe.positions > 0
        or (attention_recipe.kv_scale == "token" and not attention_recipe.center and not attention_recipe.equalize)
    )
    down_block = hadamard_block(config.intermediate_size, MAX_DOWN_BLOCK)
    return Metadata(
        recipe=recipe,
        qk_block=block if attention_recipe and attention_recipe.rotate else 0,
        v_block=block if attention_recipe and attention_recipe.rotate_v else 0,
        v_folded=bool(attention_recipe and attention_recipe.rotate_v and linear),
        down_block=down_block if linear and linear.rotate_down else 0,
        residual_rotation=bool(linear and linear.rotate_residual),
        max_position=config.max_position if everywhere else longest,
        model=model_fingerprint(files),
        calibration=fingerprint([list(ids) for ids in calibration]),
    )


def _model_quant_type(recipe: Recipe) -> str:
    if recipe.linear is None:
        return "FLOAT"
    return "W8A8" if recipe.is_mindie else "W8A8_DYNAMIC"


def _check_recipe(recipe: Recipe, config: ModelConfig, checked: Checked) -> None:
    if recipe.linear is None:
        return
    names = (*layer_linears(config), "lm_head")
    for pattern in recipe.linear.float_layers:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"The recipe's linear.float_layers has {pattern!r}, which is the name of no linear.")
    rotated = recipe.linear.rotate_residual
    if rotated and any(name.endswith("norm.bias") for name in checked.names()):
        raise UnsupportedError("The model's norms have biases, so its residual stream cannot be rotated.")
    if recipe.linear.rotate_down:
        for index in range(config.num_layers):
            if recipe.linear.is_float(f"model.layers.{index}.mlp.down_proj"):
                raise UsageError(
                    f"The recipe leaves model.layers.{index}.mlp.down_proj float and rotates down_proj's input at run "
                    "time. Set linear.rotate_down to false."
                )
    if recipe.is_mindie and config.head_dim > 256:
        raise UnsupportedError(f"The ecosystem's runtime takes a head_dim up to 256; this model has {config.head_dim}.")
