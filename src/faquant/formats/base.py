"""The interface of checkpoint formats: detect the format of a directory, open it, and read plain tables.

A format is a module with a class that implements `CheckpointFormat`, and an entry in the registry
(formats/__init__.py). model/load.py builds models from the tables of any format.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..checkpoint.model_config import ModelConfig, load_config, read_config
from ..checkpoint.tensors import TensorFiles
from ..errors import CheckpointError
from ..kernels.arrays import Stored
from ..kernels.scheme import AttentionScheme
from ..kernels.tables import FloatTable, LinearTable
from .checked import Checked
from .faquant.metadata import Metadata
from .msmodelslim.description import Description, read_description


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
        schemes: for each layer; None: float attention.
        description: None for a float model.
        metadata: None unless faquant wrote the checkpoint.
    """

    def __init__(self, source: Source, files: TensorFiles) -> None:
        self.directory, self.config, self.raw_config = source.directory, source.config, source.raw_config
        self.description = source.description
        self.files, self.checked = files, Checked(files)
        self.metadata: Metadata | None = None
        self.schemes: list[AttentionScheme | None] = [None] * source.config.num_layers

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

    def tensor(self, name: str) -> Stored:
        """A float tensor such as `model.norm.weight`. Raises: CheckpointError: it holds NaN or infinity."""
        return self.checked.finite(name)


def float_table(checked: Checked, config: ModelConfig, name: str) -> FloatTable:
    """The float linear `name`; a tied head is the embedding."""
    if name == "lm_head" and "lm_head.weight" not in checked:
        return FloatTable(checked.finite("model.embed_tokens.weight"))
    size = config.linears[name]
    bias = checked.finite(f"{name}.bias", (size.n,)) if size.has_bias else None
    return FloatTable(checked.finite(f"{name}.weight"), bias)


def check_shapes(config: ModelConfig, files: TensorFiles) -> None:
    """Check, before anything large is read, that all tensors implied by the configuration exist with their shapes.

    Raises:
        CheckpointError: one is missing, of another shape, or unexpected.
    """
    shapes, source = files.shapes(), files.directory
    for name, wanted in _implied(config, "lm_head.weight" in shapes, source).items():
        if name not in shapes:
            raise CheckpointError(f"The checkpoint has no tensor {name}, which its config.json implies.")
        if shapes[name] != wanted:
            raise CheckpointError(f"{name} has shape {list(shapes[name])}, but config.json implies {list(wanted)}.")
    # Biases and norms that config.json does not imply would be silently ignored.
    unexpected = [f"{name}.bias" for name, size in config.linears.items() if not size.has_bias]
    if not config.qk_norm:
        unexpected += [
            f"model.layers.{layer}.self_attn.{name}.weight"
            for layer in range(config.num_layers)
            for name in ("q_norm", "k_norm")
        ]
    found = next((name for name in unexpected if name in shapes), None)
    if found is not None:
        raise CheckpointError(
            f"{source} has the tensor {found}, which a {config.model_type} model with this config.json does not have. "
            "Is attention_bias, mlp_bias or model_type wrong?"
        )
    extra = f"model.layers.{config.num_layers}."
    if any(name.startswith(extra) for name in shapes):
        raise CheckpointError(
            f"{source} has tensors of layer {config.num_layers}, but in config.json num_hidden_layers is "
            f"{config.num_layers}."
        )


def _implied(config: ModelConfig, has_head: bool, source: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights that the configuration implies."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{name}.weight"] = (hidden,)
        for name in ("q_norm", "k_norm") if config.qk_norm else ():
            shapes[f"{prefix}self_attn.{name}.weight"] = (config.head_dim,)
    if not has_head and not config.tie_word_embeddings:
        raise CheckpointError(
            f"{source} has no lm_head.weight, but config.json does not tie the head to the embedding "
            "(tie_word_embeddings)."
        )
    for name, size in config.linears.items():
        if has_head or name != "lm_head":
            shapes[f"{name}.weight"] = (size.n, size.k)
    return shapes
