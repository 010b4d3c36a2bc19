"""Exports checkpoints as GGUF files for llama.cpp: Q8_0 with everything that is folded into the weights.

An int8 weight keeps its integers: each block of 32 inputs gets the scale of its output, in float16. llama.cpp rounds
inputs itself, with a scale per token and block.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...checkpoint.write import output_file
from ...formats.base import Opened
from ...formats.gguf.reader import MAGIC
from ...formats.gguf.tensors import LAYER_NAMES
from ...formats.gguf.write import (
    Bytes,
    OutTensor,
    architecture,
    model_metadata,
    obstacles,
    q8_0_of_floats,
    q8_0_of_rows,
    rope_tensors,
    rows_of,
    write_gguf,
)
from ...kernels.arrays import Floats, Stored, widen
from ...kernels.tables import DynamicTable, FloatTable, StaticTable
from ..convert import open_quantized
from .common import bias_obstacles, check_float16, linear_obstacles, model_obstacles, refuse

ENGINE = "llama.cpp"
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def export_gguf(source: Path, target: Path, tokenizer: Mapping[str, Any], overwrite: bool = False) -> list[str]:
    """Write the quantized directory `source` as the GGUF file `target`.

    Args:
        tokenizer: metadata `tokenizer.ggml.*` and the chat templates (formats.gguf.write_tokenizer).

    Returns:
        What the file leaves out, or computes in another way, as sentences.

    Raises:
        UsageError: the source is a float model.
        UnsupportedError: llama.cpp does not compute what the source does; the error lists all reasons.
        CheckpointError: the source cannot be read.
        OutputError: the target cannot be written; nothing is left behind.
    """
    opened = open_quantized(source)
    of_model = model_obstacles(opened, ENGINE) + obstacles(opened.config)
    refuse(source, ENGINE, of_model, linear_obstacles(opened, ENGINE) + bias_obstacles(opened), "portable")
    tensors = [*_tensors(opened), *rope_tensors(opened.config)]
    metadata = {**model_metadata(opened.config), "general.name": source.resolve().name, **tokenizer}
    with output_file(target, MAGIC, overwrite, opened.files.total_bytes, keep=source) as path:
        write_gguf(path, architecture(opened.config), metadata, tensors)
    notes = ["The embedding and linears that were float are Q8_0 too, and scales have 16 bits."]
    if any(opened.schemes):
        notes.append("The tables of K, V and q are left out: llama.cpp's cache has its own types (--cache-type-k).")
    return notes


def _tensors(opened: Opened) -> Iterator[OutTensor]:
    config, files = opened.config, opened.files
    for own, name in _TOP.items():
        if name != "lm_head" or "lm_head.weight" in files:
            yield from _module(opened, own, name)
    for layer in range(config.num_layers):
        for own, name in LAYER_NAMES.items():
            if config.qk_norm or not own.endswith(("q_norm", "k_norm")):
                yield from _module(opened, f"blk.{layer}.{own}", f"model.layers.{layer}.{name}")


def _module(opened: Opened, own: str, name: str) -> Iterator[OutTensor]:
    config = opened.config
    if name in config.linears:
        size = config.linears[name]
        yield OutTensor(f"{own}.weight", (size.n, size.k), True, lambda: _packed(opened, name))
        if size.has_bias:
            yield OutTensor(f"{own}.bias", (size.n,), False, lambda: _bias(opened, name))
        return
    shape = opened.files.shape(f"{name}.weight")
    if len(shape) == 1:
        yield OutTensor(f"{own}.weight", shape, False, lambda: widen(opened.tensor(f"{name}.weight")))
    else:
        yield OutTensor(f"{own}.weight", shape, True, lambda: q8_0_of_floats(widen(opened.tensor(f"{name}.weight"))))


def _bias(opened: Opened, name: str) -> Floats:
    table = opened.linear(name)
    if isinstance(table, StaticTable) or table.bias is None:
        raise TypeError(f"{name} has no bias of its own")
    return _ordered(opened, name, table.bias)


def _packed(opened: Opened, name: str) -> Bytes:
    """The bytes of a linear's weight in Q8_0."""
    table = opened.linear(name)
    if isinstance(table, FloatTable):
        return q8_0_of_floats(_ordered(opened, name, table.weight))
    if not isinstance(table, DynamicTable) or table.input_multiplier is not None:
        raise TypeError(f"{name} cannot be converted: its inputs are transformed")
    weight, scale = np.asarray(table.weight), np.asarray(table.scale)
    check_float16(name, weight, scale, ENGINE)
    rows = rows_of(opened.config, name.rpartition(".")[2])
    return q8_0_of_rows(weight, scale) if rows is None else q8_0_of_rows(weight[rows], scale[rows])


def _ordered(opened: Opened, name: str, values: Stored) -> Floats:
    """Float values by output, in llama.cpp's order."""
    rows = rows_of(opened.config, name.rpartition(".")[2])
    return widen(values) if rows is None else widen(values)[rows]
