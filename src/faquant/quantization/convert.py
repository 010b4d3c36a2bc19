"""Converts quantized checkpoints of any format to faquant's own, and what every such conversion shares."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.shards import ShardWriter, write_json
from ..checkpoint.side_files import copy_side_files
from ..checkpoint.write import add_all, output_directory
from ..errors import UsageError
from ..formats import open_checkpoint
from ..formats.base import QK_NORMS, QUANTIZATION_KEYS, Opened, norm_names
from ..formats.faquant.metadata import METADATA_KEY, SCALED_TYPE, Imported, Metadata, dynamic_type
from ..formats.msmodelslim.description import C8_TYPE, FA_TYPE, NORM_COPY, Description
from ..formats.msmodelslim.format import OpenedMsModelSlim
from ..kernels.quantizers import tensor_of
from ..kernels.tables import INPUT_STEPS, DynamicTable, FloatTable, LinearTable
from .schemes import all_scheme_tensors
from .tensors import NamedTensor


def convert_to_faquant(source: Path, target: Path, overwrite: bool = False) -> None:
    """Write a checkpoint of another tool to `target` in faquant's format, with the same arithmetic.

    Raises:
        UsageError: the source is a float model, or has faquant's format.
        CheckpointError, UnsupportedError: the source cannot be read.
        OutputError: the target cannot be written.
    """
    opened = open_quantized(source)
    if opened.metadata is not None:
        raise UsageError(f"{source} has faquant's format already.")
    with output_directory(target, overwrite, opened.files.total_bytes, keep=source) as directory:
        with ShardWriter(directory, "quant_model_weight_w8a8") as writer:
            types = add_all(writer, weights(opened))
            types |= add_all(writer, all_scheme_tensors(opened.schemes))
        write_description(directory, opened, types, imported_metadata(opened))


def open_quantized(source: Path) -> Opened:
    """Open a directory in which something is quantized. Raises: UsageError: nothing is; or as open_checkpoint."""
    opened = open_checkpoint(source)
    if opened.is_float:
        raise UsageError(f"{source} is a float model. Quantize it with faquant quantize.")
    return opened


def imported_metadata(opened: Opened) -> Metadata:
    """The metadata of the opened checkpoint if all of its tables are kept."""
    if opened.metadata is not None:
        return opened.metadata
    present = [scheme for scheme in opened.schemes if scheme is not None]
    imported = Imported(
        format=opened.format,
        p="int8" if any(scheme.p_float16 for scheme in present) else "int16",
        input_steps=INPUT_STEPS if opened.has_float_linears else opened.input_steps,
    )
    return Metadata(imported=imported, max_position=opened.max_position)


def write_description(directory: Path, opened: Opened, types: dict[str, str], metadata: Metadata) -> None:
    """Write the files beside the tensors of a checkpoint in faquant's format."""
    fa_type = FA_TYPE if FA_TYPE in types.values() else None
    described = {METADATA_KEY: metadata.model_dump()}
    write_beside(directory, opened, Description("1.0.0", opened.quant_type, fa_type, None, described, types))


def write_beside(directory: Path, opened: Opened, description: Description) -> None:
    """Write a description, the source's side files, and config.json beside the tensors."""
    write_json(directory / "quant_model_description.json", description.to_json())
    copy_side_files(opened.directory, directory)
    # Last, so that an incomplete directory is not mistaken for a model.
    write_json(directory / "config.json", config_beside(opened, description))


def config_beside(opened: Opened, description: Description) -> dict[str, Any]:
    """The content of config.json beside this description, which replaces others. Where faquant's own format is needed,
    it says so: vLLM then chooses faquant's plugin, and transformers warns instead of reading int8 weights as floats."""
    old = *QUANTIZATION_KEYS, "fa_quant_type"
    raw = {key: value for key, value in opened.raw_config.items() if key not in old}
    if "lm_head.weight" in description.tensor_types and "lm_head.weight" not in opened.files:
        raw["tie_word_embeddings"] = False
    if METADATA_KEY in description.metadata:
        raw["quantization_config"] = {"quant_method": METADATA_KEY}
    return raw


def weights(opened: Opened) -> Iterator[NamedTensor]:
    """All tensors of the opened checkpoint but the tables of its attention, by the names of faquant's format."""
    if isinstance(opened, OpenedMsModelSlim):
        for name, kind in opened.types.tensor_types.items():
            if kind not in (FA_TYPE, C8_TYPE) and not name.rpartition(".")[0].endswith(NORM_COPY):
                stored = opened.tensor(name) if name.endswith("norm.weight") else opened.files.read(name)
                yield name, kind, tensor_of(stored)
        return
    yield from float_tensors(opened)
    for name in opened.config.linears:
        if name != "lm_head" or "lm_head.weight" in opened.files:
            yield from linear_tensors(opened.linear(name), name)


def float_tensors(opened: Opened) -> Iterator[NamedTensor]:
    """Embedding as stored, and norms with the family's offset, as faquant's format has them."""
    names = ["model.embed_tokens.weight", *(f"{norm}.weight" for norm in norm_names(opened.config))]
    if opened.config.qk_norm:
        layers = range(opened.config.num_layers)
        names += [f"model.layers.{layer}.self_attn.{norm}.weight" for layer in layers for norm in QK_NORMS]
    names += [f"{norm}.bias" for norm in norm_names(opened.config) if f"{norm}.bias" in opened.files]
    for name in names:
        yield name, "FLOAT", tensor_of(opened.tensor(name))


def linear_tensors(table: LinearTable, name: str) -> Iterator[NamedTensor]:
    """The tensors of one linear."""
    if isinstance(table, FloatTable):
        yield f"{name}.weight", "FLOAT", tensor_of(table.weight)
        if table.bias is not None:
            yield f"{name}.bias", "FLOAT", tensor_of(table.bias)
        return
    multiplier = table.input_multiplier
    if isinstance(table, DynamicTable):
        if multiplier is not None:
            raise TypeError(f"{name}: no type of linears has a scale per token and an input multiplier")
        scale = tensor_of(table.scale)[:, None]
        kind = dynamic_type(rotated=False, input_steps=table.input_steps)
        yield f"{name}.weight", kind, tensor_of(table.weight)
        yield f"{name}.weight_scale", kind, scale
        yield f"{name}.weight_offset", kind, torch.zeros_like(scale)
        if table.bias is not None:
            yield f"{name}.bias", "FLOAT", tensor_of(table.bias)
        return
    kind = "W8A8" if multiplier is None else SCALED_TYPE
    yield f"{name}.weight", kind, tensor_of(table.weight)
    if multiplier is not None:
        yield f"{name}.pre_quant_scale", kind, tensor_of(multiplier)
    for part in ("input_scale", "input_offset", "quant_bias", "deq_scale"):
        yield f"{name}.{part}", kind, tensor_of(getattr(table, part))
