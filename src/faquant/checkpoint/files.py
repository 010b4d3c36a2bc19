"""The files of a checkpoint directory: which of them hold its tensors, and JSON. Names and contents are not trusted."""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UnsupportedError

QUANT_STEMS = ("quant_model_weight_w8a8", "quant_model_weight_w8a8_dynamic", "quant_model_weights")
FLOAT_STEM = "model"
DESCRIPTION_NAMES = (
    "quant_model_description.json",
    "quant_model_description_w8a8.json",
    "quant_model_description_w8a8_dynamic.json",
)
MAX_JSON_BYTES = 16 << 20


def regular_file(directory: Path, name: str) -> Path:
    """The resolved path of `directory`/`name`.

    Raises:
        CheckpointError: it does not exist, is not a regular file (opening a pipe would block), or is a symlink that
            leads out of the directory. Links into the blobs of a Hugging Face cache are followed.
    """
    path = directory / name
    try:
        root, resolved = directory.resolve(strict=True), path.resolve(strict=True)
        mode = resolved.stat().st_mode
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist. Is this a Hugging Face model directory, and is the download complete?"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path} is not a regular file. Put the file itself there.")
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    if not any(resolved.is_relative_to(allowed) for allowed in roots):
        raise CheckpointError(f"{path} is a symlink that leads out of its directory. Copy the file there instead.")
    return resolved


def read_bytes(directory: Path, name: str, limit: int) -> bytes:
    """Read `directory`/`name`.

    Raises:
        CheckpointError: as `regular_file`; or the file is larger than `limit` bytes or cannot be read.
    """
    path = directory / name
    try:
        with regular_file(directory, name).open("rb") as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise CheckpointError(f"{path} is larger than the limit of {limit} bytes for such files.")
            return file.read(limit)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None


def read_object(
    directory: Path, name: str, limit: int = MAX_JSON_BYTES, *, last_value_counts: bool = False
) -> dict[str, Any]:
    """Read the JSON object in `directory`/`name`. A byte order mark is ignored, as RFC 8259 allows.

    Args:
        last_value_counts: accept duplicate keys, as transformers does in its own files.

    Raises:
        CheckpointError: as `read_bytes`; or the file is not a JSON object, or has a duplicate key.
    """
    path = directory / name
    data = read_bytes(directory, name, limit)
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=None if last_value_counts else unique_keys)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(value).__name__}.")
    return value


def find_stems(names: set[str]) -> list[str]:
    """The stems of the tensor files in `names`, quantized ones first."""
    return [stem for stem in (*QUANT_STEMS, FLOAT_STEM) if any(_family(stem).fullmatch(name) for name in names)]


def list_names(directory: Path) -> set[str]:
    """Names of the entries of `directory`. Raises CheckpointError if it is not a readable directory."""
    try:
        return set(os.listdir(directory))
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be read as a model directory: {error.strerror}.") from None


def _family(stem: str) -> re.Pattern[str]:
    return re.compile(re.escape(stem) + r"(\.safetensors|-\d{5}-of-\d{5}\.safetensors|(\.safetensors)?\.index\.json)")


def find_files(directory: Path) -> tuple[str, list[str], dict[str, str] | None]:
    """Stem, file names, and the weight map of the index, if there is one."""
    present = list_names(directory)
    stems = find_stems(present)
    if len(stems) == 2 and stems[1] == FLOAT_STEM and present.intersection(DESCRIPTION_NAMES):
        stems = stems[:1]
    if len(stems) > 1:
        raise CheckpointError(
            f"{directory} holds the weights of several models, {' and '.join(stem + '*' for stem in stems)}. "
            "Keep one and remove the others."
        )
    if not stems:
        pickles = sorted(name for name in present if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")))
        if pickles:
            raise UnsupportedError(
                f"{directory} holds weights only as pickles ({pickles[0]!r}), which can run code when they are loaded, "
                "so faquant does not open them. Convert them to safetensors first, in a trusted environment."
            )
        raise CheckpointError(
            f"{directory} holds no weights. Expected model.safetensors, or model.safetensors.index.json with its "
            f"parts, or the same for {', '.join(QUANT_STEMS)}."
        )
    stem = stems[0]
    single = f"{stem}.safetensors"
    indexes = [name for name in (f"{stem}.safetensors.index.json", f"{stem}.index.json") if name in present]
    shards = {name for name in present if _family(stem).fullmatch(name) and name.endswith(".safetensors")}
    if not indexes:
        if shards != {single}:
            raise CheckpointError(
                f"{directory} holds {min(shards - {single})!r} but no {stem}.safetensors.index.json. "
                "Download the index; parts may be missing."
            )
        return stem, [single], None
    if len(indexes) > 1:
        raise CheckpointError(f"{directory} holds two indexes, {indexes[0]} and {indexes[1]}. Remove the wrong one.")
    weight_map = _read_index(directory, indexes[0])
    names = sorted(set(weight_map.values()))
    left = sorted(shards.difference(names))
    if left:
        raise CheckpointError(
            f"{directory} holds {left[0]!r}, which {indexes[0]} does not name. Remove it, or download the index again."
        )
    return stem, names, weight_map


def _read_index(directory: Path, name: str) -> dict[str, str]:
    weight_map = read_object(directory, name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{directory / name} has no weight_map. Download it again.")
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors", file):
            raise CheckpointError(
                f"{directory / name}: tensor {tensor!r} is listed in {file!r}, which is not the plain name of a "
                "safetensors file in the same directory."
            )
    return weight_map


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Hook for json.loads that refuses duplicate keys, because parsers disagree about their meaning."""
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {twice!r}")
    return value
