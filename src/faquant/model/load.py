"""From a directory to a Model: float checkpoints, ours, and the ecosystem's."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.description import Description, effective_fa_quant_type, read_description
from ..checkpoint.metadata import R4_TYPE, Metadata, parse_metadata
from ..checkpoint.tensors import TensorFiles
from ..config import ModelConfig, load_config, read_json
from ..errors import CheckpointError
from ..kernels.pages import FloatPages, Int8Pages, Pages
from ..kernels.scheme import AttentionScheme
from .decoder import LINEARS, Decoder, build_decoder
from .linear import DynamicLinear, FloatLinear, Linear, StaticLinear
from .schemes import Checked, read_scheme

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class Model:
    """A model ready to run. A layer whose scheme is None has float attention.

    `max_position` is how many tokens of context it may be used for. `metadata` is None unless faquant made it.
    """

    config: ModelConfig
    decoder: Decoder
    schemes: list[AttentionScheme | None]
    max_position: int
    description: Description | None = None
    metadata: Metadata | None = None

    def make_pages(self, num_pages: int, page_size: int) -> list[Pages]:
        """Empty cache pages for every layer."""
        c = self.config
        return [
            FloatPages(c.num_heads, c.num_kv_heads, c.head_dim, num_pages, page_size)
            if scheme is None
            else Int8Pages(scheme, num_pages, page_size)
            for scheme in self.schemes
        ]


def load(directory: Path) -> Model:
    """Load a float or a quantized directory; float parts compute in float32.

    Raises:
        CheckpointError: files are missing, damaged, or contradict one another.
        UnsupportedError: the model is of a kind that this program does not run.
    """
    config = load_config(directory)
    description = read_description(directory)
    if description is None:
        return load_float(directory)
    source = str(directory)
    metadata = parse_metadata(description.metadata, config, source)
    fa_quant_type = effective_fa_quant_type(read_json(directory / "config.json"), description)
    files = TensorFiles.open(directory)
    description.check_against(files)
    checked = Checked(files)
    check_shapes(config, checked, source)

    def linear(name: str) -> Linear:
        return _read_linear(checked, config, description, metadata, name)

    schemes = [
        read_scheme(checked, config, layer, metadata) if fa_quant_type else None for layer in range(config.num_layers)
    ]
    if fa_quant_type and not any(schemes):
        raise CheckpointError(
            f"{source}: the description says fa_quant_type {fa_quant_type!r}, but no layer has fa_* tensors."
        )
    return Model(
        config=config,
        decoder=build_decoder(config, checked.get, linear, checked.__contains__),
        schemes=schemes,
        max_position=metadata.max_position if metadata else config.max_position,
        description=description,
        metadata=metadata,
    )


def load_float(directory: Path, dtype: torch.dtype = torch.float32) -> Model:
    """Load a float directory; everything computes in `dtype`.

    Raises: as load.
    """
    config = load_config(directory)
    checked = Checked(TensorFiles.open(directory))
    check_shapes(config, checked, str(directory))

    def tensor(name: str) -> Tensor:
        return checked.get(name).to(dtype)

    return Model(
        config=config,
        decoder=build_decoder(
            config, tensor, lambda name: float_linear(checked, config, name, dtype), checked.__contains__, dtype
        ),
        schemes=[None] * config.num_layers,
        max_position=config.max_position,
    )


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


def check_shapes(config: ModelConfig, checked: Checked, source: str) -> None:
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
    extra = f"model.layers.{config.num_layers}."
    if any(name.startswith(extra) for name in checked.names()):
        raise CheckpointError(
            f"{source} has tensors of layer {config.num_layers}, but config.json says num_hidden_layers "
            f"{config.num_layers}."
        )


def float_linear(checked: Checked, config: ModelConfig, name: str, dtype: torch.dtype) -> FloatLinear:
    if name == "lm_head" and "lm_head.weight" not in checked:
        return FloatLinear(checked.get("model.embed_tokens.weight").to(dtype))
    bias = checked.get(f"{name}.bias", (linear_shape(config, name)[0],)).to(dtype) if has_bias(config, name) else None
    return FloatLinear(checked.get(f"{name}.weight").to(dtype), bias)


def _read_linear(
    checked: Checked, config: ModelConfig, description: Description, metadata: Metadata | None, name: str
) -> Linear:
    kind = description.tensor_types.get(f"{name}.weight", "FLOAT")
    if kind == "FLOAT":
        return float_linear(checked, config, name, torch.float32)
    read: Callable[..., Tensor] = checked.get
    n, _ = linear_shape(config, name)
    weight = read(f"{name}.weight", dtype=torch.int8)
    scale = checked.positive(f"{name}.weight_scale", (n, 1))
    offset = f"{name}.weight_offset"
    if offset in checked and read(offset, (n, 1)).any():
        raise CheckpointError(f"{offset} is not zero everywhere; weights must be quantized symmetrically.")
    if kind == "W8A8":
        packed = read(f"{name}.deq_scale", (n,))
        deq_scale = unpack_deq_scale(packed, f"{name}.deq_scale")
        checked.check_positive(f"{name}.deq_scale", deq_scale)
        return StaticLinear(
            weight,
            checked.positive(f"{name}.input_scale", (1,)),
            checked.finite(f"{name}.input_offset", (1,)).float(),
            read(f"{name}.quant_bias", (n,), torch.int32),
            deq_scale,
        )
    block = 0
    if kind == R4_TYPE:
        if metadata is None or not metadata.down_block or not name.endswith("down_proj"):
            raise CheckpointError(
                f"{name}.weight has type {R4_TYPE}, but the description's metadata names no rotation for it."
            )
        block = metadata.down_block
    elif metadata is not None and metadata.down_block and name.endswith("down_proj"):
        raise CheckpointError(
            f"{name}.weight has type {kind}, but the description's metadata says that its input is rotated."
        )
    bias = checked.finite(f"{name}.bias", (n,)).float() if has_bias(config, name) else None
    return DynamicLinear(weight, scale[:, 0].contiguous(), bias, block)


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
