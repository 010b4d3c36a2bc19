"""Converts quantized checkpoints for MindIE, if their arithmetic allows it."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ...checkpoint.model_config import ModelConfig
from ...checkpoint.shards import ShardWriter, write_json
from ...checkpoint.side_files import copy_side_files
from ...checkpoint.write import add_all, output_directory
from ...errors import UnsupportedError, UsageError
from ...formats import open_checkpoint
from ...formats.faquant.metadata import ROTATED_TYPE
from ...formats.msmodelslim.description import Description
from ...formats.msmodelslim.linears import unpack_deq_scale
from ...kernels.quantizers import tensor_of
from ...kernels.scheme import AttentionScheme
from ..tensors import DTYPES, SourceTensors
from .w8a8 import pack_deq_scale

MAX_HEAD_DIM = 256


def convert_to_mindie(source: Path, target: Path, overwrite: bool = False) -> None:
    """Write `source` to `target` with msModelSlim's file and tensor names, dtypes, and scales of shape [heads, 1].

    Raises:
        UsageError: the source is a float model.
        UnsupportedError: the format cannot express the source's arithmetic; the error lists all reasons.
        CheckpointError: the source cannot be read.
        OutputError: the target cannot be written.
    """
    opened = open_checkpoint(source)
    config, description, schemes = opened.config, opened.description, opened.schemes
    checked = SourceTensors(opened.files)
    if description is None:
        raise UsageError(f"{source} is a float model. Quantize it with --recipe mindie.")
    reasons = _obstacles(config, description, schemes)
    if reasons:
        raise UnsupportedError(
            f"{source} cannot be converted for MindIE: {'; '.join(reasons)}. Quantize the float model with "
            "--recipe mindie instead."
        )
    with output_directory(target, overwrite, opened.files.total_bytes, keep=source) as directory:
        with ShardWriter(directory, "quant_model_weight_w8a8") as writer:
            types = add_all(writer, _tensors(config, checked, description, schemes))
        result = Description("1.0.0", "W8A8", "FAQuant", None, {}, types)
        write_json(directory / "quant_model_description.json", result.to_json())
        copy_side_files(source, directory)
        write_json(directory / "config.json", opened.raw_config)


def _obstacles(config: ModelConfig, description: Description, schemes: list[AttentionScheme | None]) -> list[str]:
    """The reasons why MindIE cannot load the checkpoint."""
    reasons = []
    kinds = set(description.tensor_types.values())
    if ROTATED_TYPE in kinds:
        reasons.append("its linears' inputs are rotated at run time, which MindIE does not support")
    elif "W8A8_DYNAMIC" in kinds:
        reasons.append("its linears have a scale per token (W8A8_DYNAMIC), and MindIE supports FAQuant only with W8A8")
    floats = [layer for layer, scheme in enumerate(schemes) if scheme is None]
    if floats:
        reasons.append(f"layer {floats[0]} has float attention, and MindIE needs quantized attention in every layer")
    present = [scheme for scheme in schemes if scheme is not None]
    if any(scheme.k_scale is None for scheme in present):
        reasons.append("K and V have a scale per token, which MindIE's cache cannot store")
    if any(scheme.k_scale is not None and scheme.k_scale.shape[-1] > 1 for scheme in present) or any(
        scheme.v_scale is not None and scheme.v_scale.shape[-1] > 1 for scheme in present
    ):
        reasons.append("K or V has a scale per channel, and MindIE's tables are [heads, 1]")
    if any(scheme.q_scale is None or scheme.q_scale.shape[-1] > 1 for scheme in present):
        reasons.append("q has no calibrated scale per head")
    if any(
        scheme.k_center is not None
        or scheme.k_equalizer is not None
        or scheme.rotation_block
        or scheme.v_rotation_block
        or scheme.k_offset is not None
        or scheme.v_offset is not None
        for scheme in present
    ):
        reasons.append("K or V is centered, equalized, rotated or shifted at run time")
    if config.head_dim > MAX_HEAD_DIM:
        reasons.append(f"head_dim is {config.head_dim}, and MindIE's limit is {MAX_HEAD_DIM}")
    return reasons


def _tensors(
    config: ModelConfig, checked: SourceTensors, description: Description, schemes: list[AttentionScheme | None]
) -> Iterator[tuple[str, str, Tensor]]:
    dtype = DTYPES[config.dtype]
    quantized = {
        name for name in (*config.layer_linears, "lm_head") if description.tensor_types.get(f"{name}.weight") == "W8A8"
    }
    for name, kind in description.tensor_types.items():
        module, _, leaf = name.rpartition(".")
        if kind == "FAQuant":
            continue
        tensor = checked.get(name)
        if module in quantized and leaf == "deq_scale":
            tensor = pack_deq_scale(torch.from_numpy(unpack_deq_scale(tensor.numpy(), name)), dtype)
        elif module in quantized and leaf in ("input_scale", "input_offset", "weight_scale", "weight_offset"):
            tensor = tensor.to(dtype)
        yield name, kind, tensor
    for layer, scheme in enumerate(schemes):
        if scheme is None:
            continue
        for part, scale in (("q", scheme.q_scale), ("k", scheme.k_scale), ("v", scheme.v_scale)):
            if scale is None:
                continue
            prefix = f"model.layers.{layer}.self_attn.fa_{part}"
            tensor = tensor_of(scale).to(dtype)
            yield f"{prefix}.scale", "FAQuant", tensor
            yield f"{prefix}.offset", "FAQuant", torch.zeros_like(tensor, dtype=torch.int8)
