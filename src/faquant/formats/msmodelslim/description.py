"""quant_model_description.json: the type of each tensor of a quantized checkpoint (docs/format.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...checkpoint.files import DESCRIPTION_NAMES, FLOAT_STEM, find_stems, list_names, read_object
from ...checkpoint.tensors import TensorFiles
from ...errors import CheckpointError, UnsupportedError
from ..faquant.metadata import OWN_TYPES, WIDE_TYPE

TENSOR_TYPES = ("FLOAT", "W8A8", "W8A8_DYNAMIC", "FAQuant", "C8", *OWN_TYPES)
MODEL_TYPES = ("W8A8", "W8A8_DYNAMIC", "FLOAT", WIDE_TYPE)
FA_TYPE = "FAQuant"
C8_TYPE = "C8"
FA_TYPES = (FA_TYPE, "FAKQuant")
"""Values of fa_quant_type; msModelSlim's newer writer uses the second one for the same tensors."""
_OPTIONS = ("kv_quant_type", "group_size", "optional")
_FA_KIND = ".self_attn.quant_type"  # not a tensor: how the newer writer declares the type of a layer's q, k and v
NORM_COPY = ".module"
"""End of the names under which outlier suppression stores each norm a second time."""
_HEAD = ("version", "model_quant_type", "fa_quant_type", "kv_cache_type", "metadata")
_LINEAR_TYPES = ("W8A8", "W8A8_DYNAMIC", *OWN_TYPES)


@dataclass(frozen=True)
class Description:
    """The description of a quantized checkpoint. `tensor_types` maps each tensor's name to one of TENSOR_TYPES;
    `extra` keeps other top-level keys unchanged."""

    version: str | None
    model_quant_type: str
    fa_quant_type: str | None
    kv_cache_type: str | None
    metadata: dict[str, Any]
    tensor_types: dict[str, str]
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], source: str = DESCRIPTION_NAMES[0]) -> "Description":
        """Check the flat JSON object `raw`; `source` is named in errors.

        Raises:
            CheckpointError: a value has the wrong type, or two values contradict each other.
            UnsupportedError: a quantization type is not supported.
        """
        version = _text(raw, "version", source)
        if version is not None and version.split(".")[0] != "1":
            raise UnsupportedError(
                f"{source}: version {version!r:.80} is not supported, only 1.x. A newer version of faquant "
                "may support it."
            )
        model_type = _choice(raw, "model_quant_type", MODEL_TYPES, source)
        if model_type is None:
            raise CheckpointError(f"{source} has no model_quant_type. Is it the description of a quantized model?")
        metadata = raw.get("metadata", {})
        if not isinstance(metadata, dict):
            raise CheckpointError(f"{source}: metadata must be an object, not {metadata!r:.80}.")
        types: dict[str, str] = {}
        extra: dict[str, Any] = {}
        for key, value in raw.items():
            if key in _HEAD:
                continue
            if key.endswith(_FA_KIND):
                extra[key] = _text(raw, key, source)
            elif key in _OPTIONS or ("." not in key and value not in TENSOR_TYPES):
                extra[key] = value
            elif not isinstance(value, str):
                raise CheckpointError(f"{source}: the type of tensor {key!r:.200} must be a string, not {value!r:.80}.")
            elif value not in TENSOR_TYPES:
                raise UnsupportedError(
                    f"{source}: tensor {key!r:.200} has type {value!r:.80}, which is not supported; these are: "
                    f"{', '.join(TENSOR_TYPES)}."
                )
            else:
                types[key] = value
        quantized = next((name for name, kind in types.items() if kind in _LINEAR_TYPES), None)
        if model_type == "FLOAT" and quantized is not None:
            raise CheckpointError(
                f"{source}: model_quant_type is FLOAT, but tensor {quantized!r} has type {types[quantized]}. "
                "Set model_quant_type to the type of the linears, or quantize again."
            )
        return cls(
            version=version,
            model_quant_type=model_type,
            fa_quant_type=_choice(raw, "fa_quant_type", FA_TYPES, source),
            kv_cache_type=_choice(raw, "kv_cache_type", (C8_TYPE,), source),
            metadata=metadata,
            tensor_types=types,
            extra=extra,
        )

    @property
    def attention_types(self) -> dict[str, str]:
        """The newer writer's types of q, k and v by their keys."""
        return {key: kind for key, kind in self.extra.items() if key.endswith(_FA_KIND) and kind is not None}

    def attention_type(self, layer: int) -> str | None:
        """The newer writer's type of a layer's q, k and v; None: not stated."""
        kind: str | None = self.extra.get(f"model.layers.{layer}{_FA_KIND}")
        return kind

    def to_json(self) -> dict[str, Any]:
        """The flat object of the file: the head, then one key per tensor. None and empty values are omitted."""
        head = {key: getattr(self, key) for key in _HEAD if key != "metadata" and getattr(self, key) is not None}
        metadata = {"metadata": self.metadata} if self.metadata else {}
        return {**head, **self.extra, **metadata, **self.tensor_types}

    def check_against(self, tensors: TensorFiles) -> None:
        """Compare the description with the tensors of the checkpoint.

        Raises:
            CheckpointError: a described tensor is missing, a tensor is not described, or its dtype does not match its
                type.
        """
        missing = [name for name in self.tensor_types if name not in tensors]
        if missing:
            raise CheckpointError(
                f"{tensors.directory}: {len(missing)} described tensors are missing, {_first(missing)}. "
                "The checkpoint is incomplete; download or quantize it again."
            )
        unknown = [name for name in tensors.names() if name not in self.tensor_types]
        if unknown:
            raise CheckpointError(
                f"{tensors.directory}: {len(unknown)} tensors are not in the description, {_first(unknown)}. "
                "Weights and description do not belong together; download or quantize the checkpoint again."
            )
        for name, kind in self.tensor_types.items():
            dtype = tensors.dtype(name)
            module, _, part = name.rpartition(".")
            # Copies of norms have the type of the linears.
            allowed = _allowed(part, "FLOAT" if module.endswith(NORM_COPY) else kind)
            if allowed is not None and dtype not in allowed:
                wanted = " or ".join(allowed)
                raise CheckpointError(
                    f"{tensors.directory}: tensor {name!r} has type {kind}, so its dtype should be {wanted}, not "
                    f"{dtype}. Download or quantize the checkpoint again."
                )


def read_description(directory: Path) -> Description | None:
    """Read the description in `directory`; None for a float model.

    Raises:
        CheckpointError: the file is damaged or contradicts itself, two description files differ, or quantized weights
            have no description.
        UnsupportedError: see `Description.from_json`.
    """
    present = list_names(directory)
    names = [name for name in DESCRIPTION_NAMES if name in present]
    if not names:
        if any(stem != FLOAT_STEM for stem in find_stems(present)):
            raise CheckpointError(
                f"{directory} holds quantized weights but no {DESCRIPTION_NAMES[0]}, without which they cannot be used "
                "correctly. Download that file too."
            )
        return None
    raw = read_object(directory, names[0])
    for other in names[1:]:
        if read_object(directory, other) != raw:
            raise CheckpointError(f"{directory}: {names[0]} and {other} differ. Remove the wrong one.")
    return Description.from_json(raw, str(directory / names[0]))


def effective_fa_quant_type(config_raw: Mapping[str, Any], description: Description | None) -> str | None:
    """The FAQuant type of a model: "FAQuant", or None for float attention.

    config.json may specify it too, at the top level or in quantization_config, which takes precedence in MindIE.
    Contradictions are refused, because loaders would disagree about the model.

    Raises:
        CheckpointError: config.json and the description contradict each other.
        UnsupportedError: config.json names another type.
    """
    nested = config_raw.get("quantization_config")
    places = {
        "config.json": config_raw,
        "config.json, quantization_config": nested if isinstance(nested, Mapping) else {},
    }
    said: dict[str, str | None] = {}
    for source, table in places.items():
        if "fa_quant_type" in table:
            said[source] = _choice(table, "fa_quant_type", FA_TYPES, source)
    described = None if description is None else description.fa_quant_type
    tensors = [] if description is None else [n for n, kind in description.tensor_types.items() if kind == FA_TYPE]
    # Older checkpoints specify it only in config.json, and their description lists the tensors.
    if described is not None or (tensors and any(said.values())):
        for source, value in said.items():
            if value is None:
                raise CheckpointError(
                    f"{source}: fa_quant_type is null, but {DESCRIPTION_NAMES[0]} describes FAQuant. Some loaders "
                    "would silently disable 8-bit attention. Remove it from config.json."
                )
        return FA_TYPE
    for source, value in said.items():
        if value is not None:
            raise CheckpointError(
                f"{source}: fa_quant_type is {value!r}, but there is no description of FAQuant tensors. Remove it from "
                f"config.json, or download the {DESCRIPTION_NAMES[0]} that belongs to it."
            )
    if tensors:
        raise CheckpointError(
            f"{DESCRIPTION_NAMES[0]}: tensor {tensors[0]!r} has type FAQuant, but fa_quant_type is not set. "
            f'Add "fa_quant_type": "FAQuant" to it, if the model is to use 8-bit attention.'
        )
    return None


def _allowed(part: str, kind: str) -> tuple[str, ...] | None:
    """The allowed dtypes of a tensor of type `kind` whose name ends in `part`; None: checked when it is read."""
    floats = ("float32", "float16", "bfloat16")
    if kind == "FLOAT" or (part.endswith("scale") and part != "deq_scale") or part in ("center", "equalizer", "bias"):
        return floats
    if part.endswith("offset"):
        return (*floats, "int8")
    if (kind in _LINEAR_TYPES and part == "weight") or part == "rotation_sign":
        return ("int8",)
    return {"quant_bias": ("int32",), "deq_scale": ("float32", "int64")}.get(part)


def _text(raw: Mapping[str, Any], key: str, source: str) -> str | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{source}: {key} must be a string, not {value!r:.80}.")
    return value


def _choice(raw: Mapping[str, Any], key: str, choices: tuple[str, ...], source: str) -> str | None:
    value = _text(raw, key, source)
    if value is not None and value not in choices:
        raise UnsupportedError(f"{source}: {key} {value!r:.80} is not supported; these are: {', '.join(choices)}.")
    return value


def _first(names: list[str]) -> str:
    return ", ".join(f"{name!r:.200}" for name in names[:3]) + (", …" if len(names) > 3 else "")
