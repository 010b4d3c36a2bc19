"""Layer by layer from a float directory to a quantized one.

Only one layer's weights are in memory at a time, with the calibration prompts' residual stream before and after it.
"""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.description import Description
from ..checkpoint.metadata import Metadata, model_fingerprint
from ..checkpoint.tensors import TensorFiles
from ..checkpoint.write import ShardWriter, check_storable, copy_side_files, output_directory, side_files, write_json
from ..config import ModelConfig
from ..errors import UnsupportedError, UsageError
from ..kernels.reference import MAX_INPUT_BLOCK, hadamard_block
from ..model.load import load_float
from ..model.opening import DTYPES, layer_linears, open_checkpoint
from ..model.schemes import Checked
from ..recipe import Recipe
from .calibration import fingerprint
from .layerwise import LayerQuantizer, NamedTensor
from .mindie import calibrate_mindie

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
            _run(LayerQuantizer(config, checked, recipe, metadata), config.num_layers, prompts, sink, progress)
            if "lm_head.weight" in sink.types:
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

    def add_all(self, tensors: Iterable[NamedTensor]) -> None:
        for name, kind, tensor in tensors:
            self.add(name, tensor, kind)


def _run(quantizer: LayerQuantizer, num_layers: int, prompts: list[Tensor], sink: _Sink, progress: Progress) -> None:
    tensors, streams = quantizer.start(prompts)
    sink.add_all(tensors)
    for index in range(num_layers):
        progress(index, num_layers + 1)
        tensors, streams = quantizer.layer(index, streams)
        sink.add_all(tensors)
    progress(num_layers, num_layers + 1)
    sink.add_all(quantizer.finish(streams))
    progress(num_layers + 1, num_layers + 1)


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


def _metadata(
    config: ModelConfig,
    recipe: Recipe,
    files: TensorFiles,
    calibration: Sequence[Sequence[int]],
) -> Metadata:
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
    biased = any(name.endswith("norm.bias") for name in checked.names())
    if biased and (recipe.linear.equalize or recipe.linear.rotate == "folded"):
        raise UnsupportedError("The model's norms have biases, so nothing can be folded into them.")
    if recipe.is_mindie and config.head_dim > 256:
        raise UnsupportedError(f"The ecosystem's runtime takes a head_dim up to 256; this model has {config.head_dim}.")
