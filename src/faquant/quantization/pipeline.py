"""Quantizes a float directory, layer by layer.

Only one layer's weights are in memory at a time, with the calibration prompts' residual streams before and after it.
The streams and the written tensors are saved after each layer, and then after each block of the head, so that an
interrupted run can resume.
"""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..checkpoint.families import LLAMA_NORMS, PLAIN
from ..checkpoint.model_config import ModelConfig
from ..checkpoint.pieces import Keep, Pieces
from ..checkpoint.shards import ShardWriter, write_json
from ..checkpoint.side_files import copy_side_files, side_files
from ..checkpoint.unfinished import Unfinished, unfinished_directory
from ..checkpoint.write import add_all
from ..errors import UnsupportedError, UsageError
from ..formats import open_checkpoint
from ..formats.faquant.metadata import METADATA_KEY, WIDE_TYPE, WIDE_TYPES, Metadata
from ..formats.msmodelslim.description import Description
from ..kernels.backend import backend_for
from ..kernels.device import Device
from ..kernels.parallel import one_torch_thread
from ..kernels.scheme import MAX_INPUT_BLOCK, hadamard_block
from ..recipe import Recipe
from . import provenance
from .calibration import fingerprint
from .convert import config_beside, imported_metadata
from .layerwise import LayerQuantizer
from .mindie.plain import MindieQuantizer
from .mindie.smoothed import SmoothingQuantizer
from .tensors import NamedTensor, SourceTensors

Progress = Callable[[int, int], None]
"""Called with (steps done, total steps)."""


class Quantizer(Protocol):
    """Quantizes the parts of a model by a recipe. Streams are the prompts' residual streams, [tokens, hidden] each."""

    def start(self, prompts: Sequence[Tensor]) -> tuple[list[NamedTensor], list[Tensor]]: ...

    def layer(self, index: int, streams: list[Tensor]) -> tuple[list[NamedTensor], list[Tensor]]: ...

    @property
    def head_blocks(self) -> int: ...

    def finish(self, streams: list[Tensor], keep: Keep, progress: Callable[[int], None]) -> list[NamedTensor]: ...


def quantize(
    source: Path,
    target: Path,
    recipe: Recipe,
    calibration: Sequence[Sequence[int]],
    *,
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress = lambda done, total: None,
    notes: Mapping[str, Any] | None = None,
    requested: str | None = None,
    keep_kv_tables: bool = False,
    device: Device = "cpu",
) -> None:
    """Quantize the float directory `source` into the new directory `target`.

    Args:
        calibration: token ids of each prompt.
        overwrite: replace `target` if it is a model directory.
        restart: discard the work of an interrupted run instead of resuming it.
        notes: JSON values to write into `target`, by file name.
        keep_kv_tables: use the source's tables of attention; the recipe then has none.
        device: runs the float layers, but not their attention, by one of faquant's own recipes. The bytes written are
            the same on each.
        requested: write a note about `target` (provenance.note), with this description of the recipe.

    Raises:
        CheckpointError, UnsupportedError: the source cannot be read, or the recipe does not support it.
        OutputError: the target exists or cannot be written, or contains the work of an interrupted run with another
            model, recipe or calibration.
    """
    opened = open_checkpoint(source)
    config, files = opened.config, opened.files
    checked = SourceTensors.of(opened)
    if not opened.has_float_linears:
        raise UsageError(
            f"{source} is quantized already. Pass the float model that it was made from; or keep its linears, and run "
            f"faquant convert {source} --to faquant, or faquant calibrate {source} for new tables of attention."
        )
    if keep_kv_tables and not any(opened.schemes):
        raise UsageError(f"{source} has no tables of K and V to keep.")
    if keep_kv_tables and opened.metadata is not None and opened.metadata.attention is not None:
        raise UsageError(f"{source} has faquant's own attention. Only the tables of other tools can be kept.")
    _check_recipe(recipe, config)
    if not calibration or not all(calibration):
        raise UsageError("The calibration has no prompts, or a prompt without tokens.")
    prompts = [torch.tensor(ids, dtype=torch.int64) for ids in calibration]
    longest = max(len(prompt) for prompt in prompts)
    if longest > config.max_position:
        raise UsageError(
            f"A calibration prompt has {longest} tokens, but the model's context is {config.max_position} tokens."
        )
    side_files(source)  # report files that cannot be copied before the long work
    made_of = files.fingerprint(), fingerprint([list(ids) for ids in calibration])
    metadata = metadata_of(config, recipe, *made_of)
    if keep_kv_tables:
        metadata = metadata.model_copy(update={"imported": imported_metadata(opened).imported})
    quantizer: Quantizer
    if recipe.format == "msmodelslim":
        if device == "cuda":
            raise UsageError(f"The recipe {recipe.name} repeats msModelSlim's steps on the CPU. Use the device cpu.")
        smooth = recipe.linear is not None and recipe.linear.equalize
        quantizer = (SmoothingQuantizer if smooth else MindieQuantizer)(config, checked, recipe)
    else:
        schemes = opened.schemes if keep_kv_tables else None
        quantizer = LayerQuantizer(config, checked, recipe, metadata, schemes, backend_for(device))
    stem = "quant_model_weights" if recipe.linear is None else "quant_model_weight_w8a8"
    identity = {
        "model": made_of[0],
        "calibration": made_of[1],
        "recipe": recipe.model_dump_json() + (", with the tables of MODEL" if keep_kv_tables else ""),
        "version of faquant": version("faquant"),
    }
    with unfinished_directory(target, identity, overwrite, restart, keep=source) as work:
        types = _run(quantizer, config.num_layers, prompts, work, stem, progress)
        description = Description(
            version="1.0.0",
            model_quant_type=_model_quant_type(recipe, types),
            fa_quant_type="FAQuant" if recipe.attention or keep_kv_tables else None,
            kv_cache_type=None,
            metadata={} if recipe.format == "msmodelslim" else {METADATA_KEY: metadata.model_dump()},
            tensor_types=types,
        )
        write_json(work.output / "quant_model_description.json", description.to_json())
        copy_side_files(source, work.output)
        for name, value in (notes or {}).items():
            write_json(work.output / name, value)
        # Last, so that an incomplete directory is not mistaken for a model.
        write_json(work.output / "config.json", config_beside(opened, description))
        if requested is not None:
            provenance.note(target, work.output, provenance.request(*made_of, requested))


@one_torch_thread()
@torch.inference_mode()
def _run(
    quantizer: Quantizer,
    num_layers: int,
    prompts: list[Tensor],
    work: Unfinished,
    stem: str,
    progress: Progress,
) -> dict[str, str]:
    """Write all remaining tensors, and return the types of all tensors."""
    steps = num_layers + quantizer.head_blocks
    saved = work.load()
    types: dict[str, str] = {}

    def head(done: int) -> None:
        progress(num_layers + done, steps)

    if saved is None:
        done, writer = 0, ShardWriter(work.output, stem, work=work.path)
        tensors, streams = quantizer.start(prompts)
        types |= add_all(writer, tensors)
    else:
        values, kept = saved
        done, types = values["layers"], values["types"]
        streams = [kept.pop(f"stream {number}") for number in range(len(prompts))]
        writer = ShardWriter.resume(work.output, stem, values["writer"], kept, work.path)
    with writer:
        for index in range(done, num_layers):
            progress(index, steps)
            tensors, streams = quantizer.layer(index, streams)
            types |= add_all(writer, tensors)
            _save(work, index + 1, streams, writer, types)
        progress(num_layers, steps)
        types |= add_all(writer, quantizer.finish(streams, Pieces(work.path).keep, head))
    progress(steps, steps)
    return types


def _save(work: Unfinished, layers: int, streams: list[Tensor], writer: ShardWriter, types: dict[str, str]) -> None:
    written, waiting = writer.state()
    values: dict[str, Any] = {
        "layers": layers,
        "types": types,
        "writer": written,
    }
    work.save(values, waiting | {f"stream {number}": stream for number, stream in enumerate(streams)})


def metadata_of(config: ModelConfig, recipe: Recipe, model: str, calibration: str) -> Metadata:
    """The metadata of a checkpoint with this recipe; the last two arguments are fingerprints."""
    attention_recipe, linear = recipe.attention, recipe.linear
    block = hadamard_block(config.head_dim)
    rotate_inputs = linear is not None and linear.rotate == "inputs"
    return Metadata(
        recipe=recipe,
        qk_block=block if attention_recipe and attention_recipe.rotate else 0,
        v_block=block if attention_recipe and attention_recipe.rotate_v else 0,
        v_folded=bool(attention_recipe and attention_recipe.rotate_v and linear),
        hidden_block=hadamard_block(config.hidden_size, MAX_INPUT_BLOCK) if rotate_inputs else 0,
        down_block=hadamard_block(config.intermediate_size, MAX_INPUT_BLOCK) if rotate_inputs else 0,
        residual_rotation=linear is not None and linear.rotate == "folded",
        max_position=config.max_position,
        model=model,
        calibration=calibration,
    )


def _model_quant_type(recipe: Recipe, types: Mapping[str, str]) -> str:
    if recipe.linear is None:
        return "FLOAT"
    if any(kind in WIDE_TYPES for kind in types.values()):
        return WIDE_TYPE
    return "W8A8" if recipe.format == "msmodelslim" else "W8A8_DYNAMIC"


def _check_recipe(recipe: Recipe, config: ModelConfig) -> None:
    if recipe.format == "msmodelslim" and config.model_type not in PLAIN:
        raise UnsupportedError(
            f"The recipe {recipe.name} has msModelSlim's format, which faquant writes for {', '.join(PLAIN)}, not for "
            f"{config.model_type}. Use the recipe default or static."
        )
    if recipe.linear is None:
        return
    if recipe.linear.rotate == "folded" and config.family.norms != LLAMA_NORMS:
        raise UnsupportedError(
            f"The recipe {recipe.name} folds a rotation of the residual stream into the weights (linear.rotate), which "
            f"the norms of {config.model_type} do not allow. Set it to inputs or none."
        )
    names = (*config.layer_linears, "lm_head")
    for field in ("float_layers", "wide_inputs"):
        for pattern in getattr(recipe.linear, field):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UsageError(f"The recipe's linear.{field} has {pattern!r}, which matches no linear.")
    if recipe.format == "msmodelslim" and config.head_dim > 256:
        raise UnsupportedError(f"MindIE supports a head_dim of up to 256; this model has {config.head_dim}.")
