"""Content and cache size of a checkpoint, read without loading its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.model_config import ModelConfig
from ..checkpoint.tensors import TensorFiles
from ..formats import open_checkpoint
from ..formats.faquant.metadata import Metadata
from ..formats.msmodelslim.description import Description

PARTS = {
    "embedding": "model.embed_tokens.",
    "attention linears": ".self_attn.",
    "mlp linears": ".mlp.",
    "head": "lm_head.",
}
FLOAT_CACHE_BYTES = 4
"""Bytes per value in the cache of a layer with float attention."""


@dataclass(frozen=True)
class Inspection:
    """A summary of a checkpoint. Bytes are on disk, or per token in the cache of all layers."""

    directory: str
    config: ModelConfig
    description: Description | None
    metadata: Metadata | None
    bytes_by_part: dict[str, int]
    types_by_module: dict[str, dict[str, int]]
    kv_schemes: dict[str, int]
    kv_bytes_per_token: int
    kv_bytes_per_token_bf16: int
    max_position: int

    @property
    def weight_bytes(self) -> int:
        return sum(self.bytes_by_part.values())

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "directory": self.directory,
            "model_type": self.config.model_type,
            "layers": self.config.num_layers,
            "heads": [self.config.num_heads, self.config.num_kv_heads, self.config.head_dim],
            "model_quant_type": self.description.model_quant_type if self.description else "FLOAT",
            "fa_quant_type": self.description.fa_quant_type if self.description else None,
            "recipe": self.metadata.recipe.model_dump() if self.metadata else None,
            "bytes_by_part": self.bytes_by_part,
            "types_by_module": self.types_by_module,
            "kv_schemes": self.kv_schemes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_bytes_per_token_bf16": self.kv_bytes_per_token_bf16,
            "max_position": self.max_position,
            "context_note": self.config.context_note,
        }


def inspect(directory: Path) -> Inspection:
    """Inspect a float or quantized directory.

    Raises:
        CheckpointError, UnsupportedError: as when loading it.
    """
    opened = open_checkpoint(directory)
    config, files = opened.config, opened.files
    values = 2 * config.num_kv_heads * config.head_dim
    kinds: dict[str, int] = {}
    for scheme in opened.schemes:
        kind = "float32" if scheme is None else scheme.summary
        kinds[kind] = kinds.get(kind, 0) + 1
    return Inspection(
        directory=str(directory),
        config=config,
        description=opened.description,
        metadata=opened.metadata,
        bytes_by_part=_bytes_by_part(files),
        types_by_module=_types_by_module(opened.description, files),
        kv_schemes=kinds,
        kv_bytes_per_token=sum(
            FLOAT_CACHE_BYTES * values if scheme is None else scheme.bytes_per_token for scheme in opened.schemes
        ),
        kv_bytes_per_token_bf16=2 * values * config.num_layers,
        max_position=opened.max_position,
    )


def _bytes_by_part(files: TensorFiles) -> dict[str, int]:
    sizes = dict.fromkeys((*PARTS, "norms and others"), 0)
    for name in files.names():
        part = next((part for part, mark in PARTS.items() if mark in name), "norms and others")
        sizes[part] += files.nbytes(name)
    return sizes


def _types_by_module(description: Description | None, files: TensorFiles) -> dict[str, dict[str, int]]:
    """For each kind of module, the number of modules by type."""
    counts: dict[str, dict[str, int]] = {}
    for name in files.names():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or "norm" in module:
            continue
        kind = description.tensor_types[name] if description else files.dtype(name)
        types = counts.setdefault(module.rpartition(".")[2], {})
        types[kind] = types.get(kind, 0) + 1
    return counts
