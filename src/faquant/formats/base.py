"""The interface of checkpoint formats: detect the format of a directory, open it, and read plain tables.

A format is a module with a class that implements `CheckpointFormat`, and an entry in the registry
(formats/__init__.py). model/load.py builds models from the tables of any format.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..checkpoint.json_object import JsonObject
from ..checkpoint.model_config import ModelConfig, load_config, read_config
from ..checkpoint.tensors import FLOAT_DTYPES, TensorFiles
from ..errors import CheckpointError, FaquantError, UnsupportedError
from ..kernels.arrays import Stored, widen
from ..kernels.scheme import AttentionScheme
from ..kernels.tables import INPUT_STEPS, FloatTable, LinearTable
from .checked import Checked
from .faquant.metadata import METADATA_KEY, Metadata
from .fused import divided
from .msmodelslim.description import Description, read_description

MAX_CHECKED_BYTES = 4 << 30
"""Larger checkpoints are checked tensor by tensor while they are loaded, so that they are read from disk only once."""

QUANTIZATION_KEYS = ("quantization_config", "compression_config")
"""Where config.json describes a quantization; the second in files of old versions of compressed-tensors."""


@dataclass(frozen=True)
class Source:
    """A directory whose format is not known yet: config.json, and the description if there is one."""

    directory: Path
    config: ModelConfig
    raw_config: dict[str, Any]
    description: Description | None

    @classmethod
    def of(cls, directory: Path) -> "Source":
        """Raises: CheckpointError, UnsupportedError: config.json or the description is invalid."""
        config = load_config(directory)
        return cls(directory, config, read_config(directory), read_description(directory))

    @property
    def quantization(self) -> JsonObject:
        """`quantization_config` of config.json (`compression_config` in older files); empty if there is none.

        Raises:
            CheckpointError: it is not an object.
        """
        config = JsonObject(self.raw_config, str(self.directory / "config.json"))
        tables = [config.object(key) for key in QUANTIZATION_KEYS]
        return next((table for table in tables if table.raw), tables[0])

    def open_files(self) -> TensorFiles:
        """The tensors, by the names of a causal language model. Raises: as TensorFiles.open."""
        files = TensorFiles.open(self.directory)
        files = files.renamed(names_of_causal_lm(files.names(), self.config.tie_word_embeddings))
        # faquant's own checkpoints have the parts.
        return divided(files, self.config, self.directory) if self.config.family.fused and not self.is_ours else files

    @property
    def is_ours(self) -> bool:
        """Whether faquant wrote the checkpoint."""
        return self.description is not None and METADATA_KEY in self.description.metadata


def names_of_causal_lm(names: Collection[str], tied: bool) -> dict[str, str]:
    """New names for tensors that were saved from the base model (without `model.`), and for the embedding of a tied
    model that was saved as `lm_head.weight` only."""
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    renamed: dict[str, str] = {}
    if not any(name.startswith("model.") for name in names):
        renamed = {name: f"model.{name}" for name in names if not name.startswith("lm_head.")}
    if tied and head in names and embedding not in names and embedding not in renamed.values():
        renamed[head] = embedding
    return renamed


class CheckpointFormat(Protocol):
    """A checkpoint format."""

    name: str

    def detect(self, source: Source) -> bool:
        """Whether the directory has this format."""

    def open(self, source: Source) -> "Opened":
        """Check the directory without reading any weights.

        Raises:
            CheckpointError: files are missing, damaged, or contradict one another.
            UnsupportedError: this kind of model is not supported.
        """


class Opened(ABC):
    """An open directory, checked except for its weights.

    Attributes:
        format: the format's name.
        schemes: for each layer; None: float attention.
        metadata: None unless faquant wrote the checkpoint.
        input_steps: of linears with a scale per token (DynamicTable).
        ignored: tensors that no model of this architecture needs, such as buffers that older versions saved.
        notes: what a user should know about how the checkpoint is read, as sentences.
    """

    format: str
    input_steps: float = INPUT_STEPS

    def __init__(self, source: Source, files: TensorFiles) -> None:
        self.directory, self.config, self.raw_config = source.directory, source.config, source.raw_config
        self.files, self.checked = files, Checked(files)
        self.metadata: Metadata | None = None
        self.schemes: list[AttentionScheme | None] = [None] * source.config.num_layers
        self.ignored: list[str] = []
        self.notes: list[str] = []

    @property
    def has_float_linears(self) -> bool:
        """Whether no linear is quantized."""
        return all(self.linear_type(name) == "FLOAT" for name in self.config.linears)

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.has_float_linears and not any(self.schemes)

    @property
    def fa_quant_type(self) -> str | None:
        """As in a description: FAQuant, or None."""
        return None

    @property
    def recipe_name(self) -> str:
        """The recipe's name, or where the checkpoint comes from."""
        return self.metadata.name if self.metadata else self.format

    @property
    def quant_type(self) -> str:
        """The type of the linears, as `model_quant_type` of a description: FLOAT, W8A8 or W8A8_DYNAMIC, or of those of
        faquant's own recipes FAQUANT_W8A16_DYNAMIC."""
        kinds = {self.linear_type(name) for name in self.config.linears} - {"FLOAT"}
        return "FLOAT" if not kinds else "W8A8" if any("DYNAMIC" not in kind for kind in kinds) else "W8A8_DYNAMIC"

    @property
    def max_position(self) -> int:
        """The maximum context in tokens."""
        return self.metadata.max_position if self.metadata else self.config.max_position

    @abstractmethod
    def linear_type(self, name: str) -> str:
        """The type of the linear `name` in the description; FLOAT: it is not quantized."""

    @abstractmethod
    def linear(self, name: str) -> LinearTable:
        """The tables of the linear `name`, such as `model.layers.0.mlp.down_proj`; a tied head's are the embedding's.

        Raises:
            CheckpointError: its values are invalid.
        """

    def check_types(self) -> None:
        """Check that what is not quantized has float types. Raises: CheckpointError: it has not."""
        quantized = {f"{name}.weight" for name in self.config.linears if self.linear_type(name) != "FLOAT"}
        for name, dtype in self.files.dtypes().items():
            if name.endswith((".weight", ".bias")) and name not in quantized and dtype not in FLOAT_DTYPES:
                raise CheckpointError(f"{name} has dtype {dtype}, but must be a float type: it is not quantized.")

    def check_values(self) -> bool:
        """Check that no float tensor holds NaN or infinity, before anything is computed from the first ones; False: not
        done, because the tensors are larger than MAX_CHECKED_BYTES.

        Raises:
            CheckpointError: one does; or a tensor cannot be read.
        """
        if self.files.total_bytes > MAX_CHECKED_BYTES:
            return False
        ignored = set(self.ignored)
        for name, dtype in self.files.dtypes().items():
            if dtype in FLOAT_DTYPES and name not in ignored:
                self.checked.finite(name)
        return True

    def tensor(self, name: str) -> Stored:
        """A float tensor such as `model.norm.weight`, with the family's offset of norms, which those of faquant's own
        checkpoints include. Raises: CheckpointError: it holds NaN or infinity."""
        value = self.checked.finite(name)
        return with_offset(value, name, self.config) if self.metadata is None else value


def float_table(checked: Checked, config: ModelConfig, name: str) -> FloatTable:
    """The float linear `name`; a tied head is the embedding."""
    if name == "lm_head" and "lm_head.weight" not in checked:
        return FloatTable(checked.finite("model.embed_tokens.weight"))
    size = config.linears[name]
    bias = checked.finite(f"{name}.bias", (size.n,)) if size.has_bias else None
    return FloatTable(checked.finite(f"{name}.weight"), bias)


HARMLESS = ("rotary_emb.inv_freq", "rotary_emb.original_inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
"""Ends of the names of tensors that older versions of transformers saved although config.json determines them."""


def check_tensors(config: ModelConfig, files: TensorFiles, known: Iterable[str] = ()) -> list[str]:
    """Check, before anything large is read, that all tensors implied by the configuration exist with their shapes, and
    that there are no others.

    Args:
        known: names of the format's other tensors.

    Returns:
        The names of harmless tensors that are ignored.

    Raises:
        CheckpointError: a tensor is missing or of another shape, or a bias or norm contradicts the configuration.
        UnsupportedError: a tensor is unknown, so that the model would not compute what it was made for.
    """
    shapes, source = files.shapes(), files.directory
    implied = _implied(config, "lm_head.weight" in shapes, source)
    for name, wanted in implied.items():
        if name not in shapes:
            raise CheckpointError(f"The checkpoint has no tensor {name}, which its config.json implies.")
        if shapes[name] != wanted:
            raise CheckpointError(f"{name} has shape {list(shapes[name])}, but config.json implies {list(wanted)}.")
    biases = [f"{name}.bias" for name, size in config.linears.items() if size.has_bias]
    known = {*implied, *known, *biases}
    others = [name for name in shapes if name not in known]
    extra = f"model.layers.{config.num_layers}."
    if any(name.startswith(extra) for name in others):
        raise CheckpointError(
            f"{source} has tensors of layer {config.num_layers}, but in config.json num_hidden_layers is "
            f"{config.num_layers}."
        )
    unknown = [name for name in others if not name.endswith(HARMLESS)]
    if unknown:
        raise _unknown(config, source, unknown)
    return others


def _unknown(config: ModelConfig, source: Path, names: list[str]) -> FaquantError:
    """The error about tensors that the model does not have."""
    switches = [f"{name}.bias" for name in config.linears]
    switches += [f"model.layers.{i}.self_attn.{norm}.weight" for i in range(config.num_layers) for norm in QK_NORMS]
    switched = next((name for name in switches if name in set(names)), None)
    if switched is not None:
        return CheckpointError(
            f"{source} has the tensor {switched}, which a {config.model_type} model with this config.json does not "
            "have. Is attention_bias, mlp_bias or model_type wrong?"
        )
    if all(name.endswith(("scale", "zero_point", "offset")) for name in names):
        return UnsupportedError(
            f"{source} has scales of a quantization that its description does not name: {names[0]:.200} "
            f"({len(names)} such). Description and tensors do not belong together."
        )
    shown = ", ".join(f"{name:.200}" for name in names[:3]) + (f", … ({len(names)} in all)" if len(names) > 3 else "")
    return UnsupportedError(
        f"{source} has tensors that a {config.model_type} model does not have: {shown}. Leaving them out would change "
        "the model. Merge adapters and start from a checkpoint of the plain architecture."
    )


def with_offset(value: Stored, name: str, config: ModelConfig) -> Stored:
    """The tensor `name`, in float32 with the family's offset if it is the weight of a norm."""
    offset = config.family.norm_offset
    return widen(value) + np.float32(offset) if offset and name.endswith("norm.weight") else value


def norm_names(config: ModelConfig) -> list[str]:
    """The checkpoint names of all norms over the residual stream."""
    layers, norms = range(config.num_layers), [norm for norm in config.family.norms if norm is not None]
    return [f"model.layers.{layer}.{norm}" for layer in layers for norm in norms] + ["model.norm"]


QK_NORMS = ("q_norm", "k_norm")


def _implied(config: ModelConfig, has_head: bool, source: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights that the configuration implies."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    shapes |= {f"{name}.weight": (hidden,) for name in norm_names(config)}
    for layer in range(config.num_layers):
        for name in QK_NORMS if config.qk_norm else ():
            shapes[f"model.layers.{layer}.self_attn.{name}.weight"] = (config.qk_norm_size(name),)
    if not has_head and not config.tie_word_embeddings:
        raise CheckpointError(
            f"{source} has no lm_head.weight, but config.json does not tie the head to the embedding "
            "(tie_word_embeddings)."
        )
    for name, size in config.linears.items():
        if has_head or name != "lm_head":
            shapes[f"{name}.weight"] = (size.n, size.k)
    return shapes
