"""Replaces the tables of K and V of a checkpoint of any format; its linears stay as they are."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.shards import ShardWriter
from ..checkpoint.write import add_all, output_directory
from ..errors import UsageError
from ..formats import open_checkpoint
from ..formats.base import Opened
from ..formats.faquant.metadata import Imported, Metadata
from ..kernels.backend import make_backend
from ..kernels.parallel import one_torch_thread
from ..kernels.quantizers import hadamard
from ..kernels.scheme import AttentionScheme
from ..model.load import build_model
from ..recipe import AttentionRecipe, Recipe
from . import attention
from .calibration import fingerprint
from .convert import weights, write_description
from .observe import states_through
from .pipeline import metadata_of
from .schemes import all_scheme_tensors


def recalibrate(
    source: Path,
    target: Path,
    recipe: AttentionRecipe,
    calibration: Sequence[Sequence[int]],
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write `source` to `target` in faquant's format, with new tables of attention and the same linears.

    The linears run as they are, and attention in float32, while q, K and V are observed.

    Args:
        recipe: of the attention. Whether V is rotated is kept if the rotation is folded into the linears.
        calibration: token ids of each prompt.
        progress: called with (layers done, all layers).

    Raises:
        UsageError: the calibration is empty or too long.
        CheckpointError, UnsupportedError: the source cannot be read.
        OutputError: the target cannot be written.
    """
    opened = open_checkpoint(source)
    if not calibration or not all(calibration):
        raise UsageError("The calibration has no prompts, or a prompt without tokens.")
    longest = max(len(ids) for ids in calibration)
    if longest > opened.max_position:
        raise UsageError(
            f"A calibration prompt has {longest} tokens, but the model's context is {opened.max_position} tokens."
        )
    metadata = _metadata(opened, recipe, calibration)
    prompts = [torch.tensor(ids, dtype=torch.int64) for ids in calibration]
    with output_directory(target, overwrite, opened.files.total_bytes, keep=source) as directory:
        with ShardWriter(directory, "quant_model_weight_w8a8") as writer:
            types = add_all(writer, weights(opened))
            types |= add_all(writer, all_scheme_tensors(calibrated(opened, metadata, prompts, progress)))
        write_description(directory, opened, types, metadata)


def _metadata(opened: Opened, recipe: AttentionRecipe, calibration: Sequence[Sequence[int]]) -> Metadata:
    """The metadata with this attention instead of the old one."""
    made, config = opened.metadata, opened.config
    linear = made.linear if made else None
    if made and made.v_folded:
        recipe = recipe.model_copy(update={"rotate_v": bool(made.v_block)})
    elif linear is not None:
        recipe = recipe.model_copy(update={"rotate_v": False})  # with a recipe of linears, it would be folded
    new = metadata_of(
        config,
        Recipe(name=f"calibrated-{recipe.kv_scale}", attention=recipe, linear=linear),
        opened.files.fingerprint(),
        fingerprint([list(ids) for ids in calibration]),
    )
    origin = opened.format if made is None else made.imported.format if made.imported else None
    # After calibration, only linears without a recipe are still another tool's.
    kept = origin is not None and linear is None and not opened.is_float
    imported = Imported(format=origin, input_steps=opened.input_steps) if origin is not None and kept else None
    # The float model's fingerprint is known only if faquant has quantized it.
    source = made.model if made else new.model if opened.is_float else None
    return new.model_copy(update={"imported": imported, "model": source, "max_position": opened.max_position})


@one_torch_thread()
@torch.inference_mode()
def calibrated(
    opened: Opened, metadata: Metadata, prompts: Sequence[Tensor], progress: Callable[[int, int], None]
) -> list[AttentionScheme | None]:
    """The new scheme of each layer."""
    config, recipe = opened.config, metadata.attention
    if recipe is None:
        raise TypeError("the metadata must have a recipe of attention")
    model = build_model(opened, make_backend("cpu"), lazy=True)
    streams = [torch.as_tensor(model.decoder.embed(prompt.numpy())) for prompt in prompts]
    schemes: list[AttentionScheme | None] = []
    for index in range(config.num_layers):
        progress(index, config.num_layers)
        (queries, keys, values), streams = states_through(config, model.decoder.layers[index], streams)
        if metadata.v_folded:  # they are observed after the rotation, which is its own inverse
            values = [hadamard(v, metadata.v_block) for v in values]
        schemes.append(attention.calibrate(config, recipe, queries, keys, values, metadata.v_folded, index))
    progress(config.num_layers, config.num_layers)
    return schemes
