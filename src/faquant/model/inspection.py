"""Content and cache size of a checkpoint, and whether its float tensors are finite; no weights are loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.model_config import ModelConfig
from ..checkpoint.tensors import TensorFiles
from ..formats import open_checkpoint
from ..formats.base import Opened
from ..formats.faquant.metadata import Metadata

PARTS = {
    "embedding": "model.embed_tokens.",
    "attention linears": ".self_attn.",
    "mlp linears": ".mlp.",
    "head": "lm_head.",
}
FLOAT_CACHE = "float32"
FLOAT_CACHE_BYTES = 4
"""Bytes per value in the cache of a layer with float attention."""


@dataclass(frozen=True)
class Inspection:
    """A summary of a checkpoint. Bytes are on disk, or per token in the cache of all layers."""

    directory: str
    config: ModelConfig
    format: str
    quant_type: str
    fa_quant_type: str | None
    recipe_name: str
    metadata: Metadata | None
    bytes_by_module: dict[str, int]  # of the tensors directly in it
    types_by_module: dict[str, dict[str, int]]
    kv_schemes: dict[str, int]
    kv_bytes_by_layer: list[int]
    kv_bytes_per_token_bf16: int
    max_position: int
    ignored: list[str]
    notes: list[str]
    values_checked: bool

    @property
    def weight_bytes(self) -> int:
        return sum(self.bytes_by_module.values())

    @property
    def bytes_by_part(self) -> dict[str, int]:
        sizes = dict.fromkeys((*PARTS, "norms and others"), 0)
        for module, size in self.bytes_by_module.items():
            part = next((part for part, mark in PARTS.items() if mark in f"{module}."), "norms and others")
            sizes[part] += size
        return sizes

    @property
    def kv_bytes_per_token(self) -> int:
        return sum(self.kv_bytes_by_layer)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "directory": self.directory,
            "model_type": self.config.model_type,
            "layers": self.config.num_layers,
            "heads": [self.config.num_heads, self.config.num_kv_heads, self.config.head_dim],
            "format": self.format,
            "model_quant_type": self.quant_type,
            "fa_quant_type": self.fa_quant_type,
            "recipe": self.metadata.recipe.model_dump() if self.metadata and self.metadata.recipe else None,
            "bytes_by_part": self.bytes_by_part,
            "types_by_module": self.types_by_module,
            "kv_schemes": self.kv_schemes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_bytes_per_token_bf16": self.kv_bytes_per_token_bf16,
            "max_position": self.max_position,
            "ignored": self.ignored,
            "notes": self.notes,
            "values_checked": self.values_checked,
            "context_note": self.config.context_note,
        }


def inspect(directory: Path) -> Inspection:
    """Inspect a float or quantized directory. The float tensors of a large one are not read (Opened.check_values).

    Raises:
        CheckpointError, UnsupportedError: as when loading it.
    """
    opened = open_checkpoint(directory)
    config, files = opened.config, opened.files
    values = 2 * config.num_kv_heads * config.head_dim
    kinds: dict[str, int] = {}
    for scheme in opened.schemes:
        kind = FLOAT_CACHE if scheme is None else scheme.summary
        kinds[kind] = kinds.get(kind, 0) + 1
    return Inspection(
        directory=str(directory),
        config=config,
        format=opened.format,
        quant_type=opened.quant_type,
        fa_quant_type=opened.fa_quant_type,
        recipe_name=opened.recipe_name,
        metadata=opened.metadata,
        bytes_by_module=_bytes_by_module(files),
        types_by_module=_types_by_module(opened),
        kv_schemes=kinds,
        kv_bytes_by_layer=[
            FLOAT_CACHE_BYTES * values if scheme is None else scheme.bytes_per_token for scheme in opened.schemes
        ],
        kv_bytes_per_token_bf16=2 * values * config.num_layers,
        max_position=opened.max_position,
        ignored=opened.ignored,
        notes=notes_of(opened),
        values_checked=opened.check_values(),
    )


def notes_of(opened: Opened) -> list[str]:
    """What a user should know about a checkpoint: how it is read, and what would improve it."""
    if opened.has_float_linears or any(opened.schemes):
        return opened.notes
    advice = f"Attention is float, with a float cache; to make it 8-bit: faquant calibrate {opened.directory} -o OUT"
    return [*opened.notes, advice]


def _bytes_by_module(files: TensorFiles) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name in files.names():
        module = name.rpartition(".")[0]
        sizes[module] = sizes.get(module, 0) + files.nbytes(name)
    return sizes


def _types_by_module(opened: Opened) -> dict[str, dict[str, int]]:
    """For each kind of module, the number of modules by type; for float ones, by dtype."""
    counts: dict[str, dict[str, int]] = {}
    for name in opened.files.names():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or "norm" in module:
            continue
        kind = opened.linear_type(module) if module in opened.config.linears else "FLOAT"
        kind = opened.files.dtype(name) if kind == "FLOAT" else kind
        types = counts.setdefault(module.rpartition(".")[2], {})
        types[kind] = types.get(kind, 0) + 1
    return counts
