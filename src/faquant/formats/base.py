"""Opening a checkpoint directory: everything that it says is checked, and no weight is read yet."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.json_object import read_json
from ..checkpoint.model_config import ModelConfig, load_config
from ..checkpoint.tensors import TensorFiles
from ..errors import CheckpointError, UnsupportedError
from ..kernels.isa import MAX_DOT_LENGTH
from ..kernels.scheme import AttentionScheme
from ..model.decoder import LINEARS
from .faquant.metadata import ROTATED_TYPE, Metadata, parse_metadata
from .msmodelslim.description import Description, effective_fa_quant_type, read_description
from .schemes import Checked, read_scheme

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Opened:
    """A float or quantized directory, sound as far as can be told without its weights.

    `description` is None for a float model, `metadata` unless faquant made it. A layer whose scheme is None has float
    attention.
    """

    directory: Path
    config: ModelConfig
    raw_config: dict[str, Any]
    files: TensorFiles
    checked: Checked
    description: Description | None
    metadata: Metadata | None
    schemes: list[AttentionScheme | None]

    @property
    def max_position(self) -> int:
        """How many tokens of context it may be used for."""
        return self.metadata.max_position if self.metadata else self.config.max_position


def open_checkpoint(directory: Path) -> Opened:
    """Open a float or quantized directory.

    Raises:
        CheckpointError: files are missing, damaged, or contradict one another.
        UnsupportedError: the model is of a kind that this program does not run.
    """
    config = load_config(directory)
    raw_config = read_json(directory / "config.json")
    description = read_description(directory)
    files = TensorFiles.open(directory)
    checked = Checked(files)
    metadata = None
    schemes: list[AttentionScheme | None] = [None] * config.num_layers
    if description is not None:
        description.check_against(files)
        metadata = parse_metadata(description.metadata, config, str(directory))
    _check_shapes(config, checked, str(directory))
    if description is None:
        _check_float(checked)
    else:
        fa_quant_type = effective_fa_quant_type(raw_config, description)
        _check_attention_types(description)
        for name in (*layer_linears(config), "lm_head"):
            if description.tensor_types.get(f"{name}.weight", "FLOAT") != "FLOAT":
                _check_linear(checked, config, description, metadata, name)
        if fa_quant_type:
            schemes = [read_scheme(checked, config, layer, metadata) for layer in range(config.num_layers)]
            if not any(schemes):
                raise CheckpointError(
                    f"{directory}: the description says fa_quant_type {fa_quant_type!r}, but no layer has fa_* tensors."
                )
    return Opened(directory, config, raw_config, files, checked, description, metadata, schemes)


def linear_shape(config: ModelConfig, name: str) -> tuple[int, int]:
    """[n, k] of the linear with that checkpoint name."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size
    return {
        "q_proj": (q, hidden),
        "k_proj": (kv, hidden),
        "v_proj": (kv, hidden),
        "o_proj": (hidden, q),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
        "lm_head": (config.vocab_size, hidden),
    }[name.rpartition(".")[2]]


def has_bias(config: ModelConfig, name: str) -> bool:
    """Whether the model has a bias on that linear."""
    kind = name.rpartition(".")[2]
    if kind in ("q_proj", "k_proj", "v_proj"):
        return config.qkv_bias
    return config.o_bias if kind == "o_proj" else config.mlp_bias and kind != "lm_head"


def layer_linears(config: ModelConfig) -> list[str]:
    """Checkpoint names of all linears of the layers, in order."""
    return [f"model.layers.{layer}.{name}" for layer in range(config.num_layers) for name in LINEARS]


def _check_shapes(config: ModelConfig, checked: Checked, source: str) -> None:
    """Every tensor that the configuration implies is there with its shape, before anything large is read."""
    hidden = config.hidden_size
    checked.expect("model.embed_tokens.weight", (config.vocab_size, hidden))
    checked.expect("model.norm.weight", (hidden,))
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            checked.expect(f"{prefix}{name}.weight", (hidden,))
        for name in ("q_norm", "k_norm") if config.qk_norm else ():
            checked.expect(f"{prefix}self_attn.{name}.weight", (config.head_dim,))
    names = layer_linears(config)
    if "lm_head.weight" in checked:
        names.append("lm_head")
    elif not config.tie_word_embeddings:
        raise CheckpointError(
            f"{source} has no lm_head.weight, and config.json says that the head is not tied (tie_word_embeddings)."
        )
    for name in names:
        checked.expect(f"{name}.weight", linear_shape(config, name))
    _refuse_unexpected(config, checked, source)
    extra = f"model.layers.{config.num_layers}."
    if any(name.startswith(extra) for name in checked.names()):
        raise CheckpointError(
            f"{source} has tensors of layer {config.num_layers}, but config.json says num_hidden_layers "
            f"{config.num_layers}."
        )


def _refuse_unexpected(config: ModelConfig, checked: Checked, source: str) -> None:
    """Biases and norms that config.json does not imply would be left out of the computation without a word."""
    unexpected = [f"{name}.bias" for name in (*layer_linears(config), "lm_head") if not has_bias(config, name)]
    if not config.qk_norm:
        unexpected += [
            f"model.layers.{layer}.self_attn.{name}.weight"
            for layer in range(config.num_layers)
            for name in ("q_norm", "k_norm")
        ]
    found = next((name for name in unexpected if name in checked), None)
    if found is not None:
        raise CheckpointError(
            f"{source} has the tensor {found}, which a {config.model_type} model with this config.json does not have. "
            "Is attention_bias, mlp_bias or model_type wrong?"
        )


def _check_float(checked: Checked) -> None:
    for name in checked.names():
        if not checked.files.dtype(name).is_floating_point:
            raise CheckpointError(
                f"{name} has dtype {checked.files.dtype(name)}, but there is no "
                "quant_model_description.json that says how it is quantized. Fetch that file too."
            )


def _check_attention_types(description: Description) -> None:
    for name, kind in description.tensor_types.items():
        if ".self_attn.fa_" in name and kind != "FAQuant":
            raise CheckpointError(f"{name} has type {kind} in the description, but must have FAQuant.")
    if description.kv_cache_type is not None:
        raise UnsupportedError(
            f"kv_cache_type {description.kv_cache_type!r} is not supported: its cache would be held in float. Quantize "
            "with FAQuant instead."
        )


def _check_linear(
    checked: Checked, config: ModelConfig, description: Description, metadata: Metadata | None, name: str
) -> None:
    """The small tensors of a quantized linear: there, of their shapes, possible, and in agreement."""
    kind = description.tensor_types[f"{name}.weight"]
    if kind not in ("W8A8", "W8A8_DYNAMIC", ROTATED_TYPE):
        raise CheckpointError(f"{name}.weight has type {kind} in the description, which is no type of a linear.")
    n, k = linear_shape(config, name)
    if k > MAX_DOT_LENGTH:
        raise UnsupportedError(f"{name} has {k} inputs; an int32 sum is sure to hold {MAX_DOT_LENGTH} products.")
    offset = f"{name}.weight_offset"
    if offset in checked and checked.get(offset, (n, 1)).any():
        raise CheckpointError(f"{offset} is not zero everywhere; weights must be quantized symmetrically.")
    weight_scale = f"{name}.weight_scale"
    if kind != "W8A8" or weight_scale in checked:
        checked.positive(weight_scale, (n, 1))
    if kind != "W8A8":
        _check_rotation(kind, metadata, name)
        return
    deq_scale = read_deq_scale(checked, name, n)
    input_scale = checked.positive(f"{name}.input_scale", (1,))
    input_offset = checked.finite(f"{name}.input_offset", (1,)).float()
    if (input_offset.round() != input_offset).any() or (input_offset < -128).any() or (input_offset > 127).any():
        raise CheckpointError(
            f"{name}.input_offset is {input_offset.item()}, but must be a whole number from -128 to 127."
        )
    if weight_scale in checked:
        expected = input_scale * checked.positive(weight_scale, (n, 1))[:, 0]
        # Three roundings to bfloat16 between them, and float16 may have gone subnormal.
        if ((deq_scale - expected).abs() > 0.02 * expected + 2.0**-23).any():
            raise CheckpointError(f"{name}.deq_scale is not input_scale · weight_scale. The file is damaged.")
    bias = checked.get(f"{name}.quant_bias", (n,), torch.int32)
    if (bias.long().abs() > (1 << 31) - 1 - 128 * 127 * k).any():
        raise CheckpointError(f"{name}.quant_bias holds values with which an int32 sum could overflow.")


def _check_rotation(kind: str, metadata: Metadata | None, name: str) -> None:
    rotated = metadata is not None and metadata.input_block(name) > 0
    if kind == ROTATED_TYPE and not rotated:
        raise CheckpointError(
            f"{name}.weight has type {ROTATED_TYPE}, but the description's metadata names no rotation for it."
        )
    if kind != ROTATED_TYPE and rotated:
        raise CheckpointError(
            f"{name}.weight has type {kind}, but the description's metadata says that its input is rotated."
        )


def read_deq_scale(checked: Checked, name: str, n: int) -> Tensor:
    """float32 deq_scale [n] of the static linear `name`, which may be stored as int64.

    Raises:
        CheckpointError: it is missing, of another shape, or holds impossible scales.
    """
    deq_scale = unpack_deq_scale(checked.get(f"{name}.deq_scale", (n,)), f"{name}.deq_scale")
    checked.check_positive(f"{name}.deq_scale", deq_scale)
    return deq_scale


def unpack_deq_scale(packed: Tensor, name: str) -> Tensor:
    """float32 scales from float32, or from int64 that hold the float32 bits (as int32, widened).

    Raises:
        CheckpointError: another dtype, or bits beyond 32.
    """
    if packed.dtype == torch.float32:
        return packed
    if packed.dtype != torch.int64:
        raise CheckpointError(f"{name} must be float32, or int64 that holds float32 bits, not {packed.dtype}.")
    if ((packed < -(1 << 31)) | (packed >= 1 << 32)).any():
        raise CheckpointError(f"{name} is int64, but its values are no float32 bits.")
    return packed.to(torch.int32).view(torch.float32)
