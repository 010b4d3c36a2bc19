"""The files beside a checkpoint's weights: tokenizer, chat templates, generation config, licenses.

The loader reads them only by `read_side_file` and `read_side_object`, which know no other files than those that
`copy_side_files` copies. So a copy is read like its source.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .files import list_names, read_bytes, read_object, regular_file

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
TEMPLATES, TEMPLATE_SUFFIX = "additional_chat_templates", ".jinja"
"""The directory of named chat templates, NAME.jinja, and the suffix of its files."""
LEGAL_PREFIXES, LEGAL_SUFFIXES = ("LICENSE", "NOTICE"), ("", ".txt", ".md", ".rst")
MAX_SIDE_FILE_BYTES = 256 << 20


def copy_side_files(source: Path, target: Path) -> list[str]:
    """Copy tokenizer, chat templates, generation config, license and notice files; return their names, sorted.

    Code, pickles and other directories than that of chat templates are never copied.

    Raises:
        CheckpointError: such a file is not a regular file, is a symlink out of `source`, or is larger than 256 MiB.
        OSError: the copy cannot be written.
    """
    names = side_files(source)
    for name in names:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(regular_file(source, name), target / name)
    return names


def side_files(source: Path) -> list[str]:
    """The files of `source` that copy_side_files copies. Raises: as copy_side_files."""
    found = [name for name in list_names(source) if name in SIDE_FILES or _is_legal(source, name)]
    found = sorted([*found, *template_files(source)])
    for name in found:
        if regular_file(source, name).stat().st_size > MAX_SIDE_FILE_BYTES:
            raise CheckpointError(f"{source / name} is larger than {MAX_SIDE_FILE_BYTES} bytes. Remove or replace it.")
    return found


def template_files(directory: Path) -> list[str]:
    """The files of named chat templates, as additional_chat_templates/NAME.jinja, sorted.

    Raises:
        CheckpointError: the directory cannot be read.
    """
    if not (directory / TEMPLATES).is_dir():
        return []
    return sorted(f"{TEMPLATES}/{name}" for name in list_names(directory / TEMPLATES) if name.endswith(TEMPLATE_SUFFIX))


def has_side_file(directory: Path, name: str) -> bool:
    """Whether there is something of this name, even if it cannot be read."""
    return os.path.lexists(directory / name)


def read_side_file(directory: Path, name: str, limit: int = MAX_SIDE_FILE_BYTES) -> bytes | None:
    """The content of a side file; None if there is none.

    Raises:
        CheckpointError: it is not a regular file, is a symlink out of `directory`, is larger than `limit` bytes, or
            cannot be read.
    """
    _check_listed(name)
    return read_bytes(directory, name, limit) if has_side_file(directory, name) else None


def read_side_object(directory: Path, name: str) -> dict[str, Any]:
    """The JSON object in a side file; empty if the file is missing.

    Raises:
        CheckpointError: as read_side_file; or it is not a JSON object.
    """
    _check_listed(name)
    if not has_side_file(directory, name):
        return {}
    return read_object(directory, name, MAX_SIDE_FILE_BYTES, last_value_counts=True)


def _check_listed(name: str) -> None:
    if name not in SIDE_FILES and not (name.startswith(f"{TEMPLATES}/") and name.endswith(TEMPLATE_SUFFIX)):
        raise ValueError(f"{name} is not in SIDE_FILES, so it would not be copied.")


def _is_legal(source: Path, name: str) -> bool:
    suffix = Path(name).suffix.lower()
    return name.startswith(LEGAL_PREFIXES) and suffix in LEGAL_SUFFIXES and not (source / name).is_dir()
