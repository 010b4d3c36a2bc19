"""Converts GGUF files to Hugging Face directories."""

import math
from collections.abc import Callable
from pathlib import Path

import torch

from ...checkpoint.shards import ShardWriter, write_json
from ...checkpoint.write import output_directory
from ...errors import CheckpointError, UnsupportedError
from .config import build_config, unrecorded
from .reader import read_gguf
from .tensors import plan_tensors, read_tensor
from .tokenizer import build_tokenizer, tokenizer_config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert_gguf(
    path: Path,
    output: Path,
    dtype: str = "float32",
    progress: Callable[[int, int], None] = lambda done, total: None,
    overwrite: bool = False,
) -> list[str]:
    """Convert the GGUF file `path` to a Hugging Face directory `output`: config, weights, tokenizer.

    The architectures in `config.ARCHITECTURES` are supported. If a file is split (NAME-00001-of-00003.gguf), `path` may
    be any part. Weights are dequantized tensor by tensor to `dtype`, one of float32 (exact), bfloat16 and float16 (both
    rounded). `progress` is called with the number of tensors written and the total. Returns the names of settings that
    the original's config.json may have, and that the file cannot tell.

    Raises:
        CheckpointError: the file is missing, damaged, or contradicts itself.
        UnsupportedError: its architecture, a feature or a quantization is not supported.
        OutputError: `output` exists and may not be replaced, or cannot be written; nothing is left behind.
    """
    if dtype not in DTYPES:
        raise UnsupportedError(f"dtype {dtype!r} is not supported; these are: {', '.join(DTYPES)}.")
    gguf = read_gguf(path)
    config = build_config(gguf, dtype)
    plan = plan_tensors(gguf, config)
    tokenizer = build_tokenizer(gguf.metadata, gguf.source)
    last = max(tokenizer.get_vocab().values())
    if last >= config["vocab_size"]:
        raise CheckpointError(
            f"{gguf.source} has a token with id {last}, but embeddings for only {config['vocab_size']} tokens."
        )
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
    settings = tokenizer_config(gguf.metadata, config["max_position_embeddings"], gguf.source)
    needed = sum(math.prod(item.tensor.shape) for item in plan) * DTYPES[dtype].itemsize
    with output_directory(output, overwrite, needed, keep=path) as directory:
        write_json(directory / "config.json", config)
        write_json(directory / "generation_config.json", generation)
        write_json(directory / "tokenizer_config.json", settings)
        (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        with ShardWriter(directory, "model") as writer:
            for done, item in enumerate(plan, 1):
                writer.add(item.name, read_tensor(gguf, item, DTYPES[dtype]))
                progress(done, len(plan))
    return unrecorded(gguf, config)
