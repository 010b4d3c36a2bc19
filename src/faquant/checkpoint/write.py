"""Checkpoint directories out: all of it, or nothing that loads."""

import ctypes
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import CheckpointError, OutputError, UnsupportedError
from .files import list_names, read_object, regular_file
from .tensors import DTYPES, MAX_HEADER_BYTES

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
LEGAL_PREFIXES, LEGAL_SUFFIXES = ("LICENSE", "NOTICE"), ("", ".txt", ".md", ".rst")
MAX_SIDE_FILE_BYTES = 256 << 20
ALIGNMENT = 64
HEADER_ROOM = MAX_HEADER_BYTES // 4 - 8  # with the 8 bytes of its length: data starts aligned
COMPACT_BELOW = 64 << 20
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@contextmanager
def output_directory(
    target: Path, overwrite: bool = False, needed_bytes: int | None = None, keep: Path | None = None
) -> Iterator[Path]:
    """Yield a temporary directory beside `target` that becomes `target`, by rename, when the block ends well.

    On any exception it is removed and `target` stays as it was. `needed_bytes`, if known, is compared with the room on
    the disk before anything is written. With `overwrite` an existing model directory is replaced; it is removed last.
    `keep` is a directory that is read meanwhile, and so must neither be `target` nor lie in it.

    Raises:
        OutputError: `target` exists and may not be replaced, or an OSError came up inside the block.
    """
    shown = target
    try:
        target = target.resolve()
        if keep is not None and keep.resolve().is_relative_to(target):
            raise OutputError(f"{shown} is, or holds, the source {keep}. Write to another place.")
        _check_target(target, overwrite)
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if needed_bytes is not None and needed_bytes > free:
            raise OutputError(
                f"{shown} needs {_size(needed_bytes)}, and {target.parent} has {_size(free)} free. "
                f"Make room or write elsewhere.{_leftovers(target)}"
            )
        partial = target.parent / f".{target.name[:64]}.partial-{os.getpid()}-{secrets.token_hex(4)}"
        _remove_dead(target)
        partial.mkdir()
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(f"{shown} cannot be written: {error}. Choose another place.") from None
    try:
        yield partial
        _sync_tree(partial)
        _check_target(target, overwrite)
        _swap(partial, target)
        # It is in place; a directory that cannot be opened or synced does not change that.
        with suppress(OSError):
            _sync(target.parent)
    except OSError as error:
        raise OutputError(_explain(error, shown, target, partial)) from error
    finally:
        # After the swap there is nothing of this name.
        shutil.rmtree(partial, ignore_errors=True)


class ShardWriter:
    """Streams tensors into safetensors files of at most `shard_bytes` each (one larger tensor gets a file of its own).

    A file needs its header first, so room for it is left and filled in at the end; a small file is then closed up.
    Tensors whose bytes are no multiple of 64 wait for the end of the file, so that every tensor starts aligned.
    """

    def __init__(self, directory: Path, stem: str, shard_bytes: int = 4 << 30) -> None:
        self._directory, self._stem, self._shard_bytes = directory, stem, shard_bytes
        self._shards: list[Path] = []
        self._shard_of: dict[str, int] = {}
        self._total = 0
        self._closed = False
        self._file: BinaryIO | None = None
        self._start_shard()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor.

        Raises:
            OutputError: the name was added before, or tensor or name cannot be stored.
            OSError: the disk refuses (`output_directory` turns that into an OutputError).
        """
        if self._closed:
            raise OutputError(f"Tensor {name!r} was added after the files of {self._stem!r} were closed.")
        if name in self._shard_of:
            raise OutputError(f"Tensor {name!r} was added twice; a checkpoint holds each name once.")
        if tensor.dtype not in _NAMES or tensor.layout != torch.strided or tensor.is_meta:
            raise OutputError(f"Tensor {name!r} ({tensor.dtype}, {tensor.layout}) is not of a kind that can be stored.")
        tensor = tensor.detach().resolve_neg().cpu().contiguous()
        entry_bytes = len(_dump({name: _info(tensor, 1 << 60)}, name))
        if name == "__metadata__" or entry_bytes > HEADER_ROOM // 2:
            raise OutputError(f"A tensor cannot be named {name[:80]!r} in a safetensors file.")
        full = self._bytes and self._bytes + tensor.nbytes > self._shard_bytes
        if full or self._header_bytes + entry_bytes > HEADER_ROOM:
            self._finish_shard()
            self._start_shard()
        self._header_bytes += entry_bytes
        self._bytes += tensor.nbytes
        self._total += tensor.nbytes
        self._shard_of[name] = len(self._shards)
        if tensor.nbytes % ALIGNMENT:
            # A copy: the caller may change a tensor once it was added.
            self._waiting.append((name, tensor.clone()))
        else:
            self._put(name, tensor)

    def close(self) -> None:
        """Finish the last file, give all their names and write the index, if there are several. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._finish_shard()
        count = len(self._shards)
        names = [f"{self._stem}-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
        if count == 1:
            names = [f"{self._stem}.safetensors"]
        for path, name in zip(self._shards, names, strict=True):
            path.rename(self._directory / name)
        if count > 1:
            weight_map = {tensor: names[shard] for tensor, shard in self._shard_of.items()}
            index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
            write_json(self._directory / f"{self._stem}.safetensors.index.json", index)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _start_shard(self) -> None:
        self._path = self._directory / f".{self._stem}-{len(self._shards) + 1:05}.partial"
        self._file = self._path.open("x+b", buffering=0)
        self._file.seek(8 + HEADER_ROOM)
        self._header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._header_bytes = ALIGNMENT
        self._bytes = 0
        self._written = 0
        self._waiting: list[tuple[str, torch.Tensor]] = []

    def _put(self, name: str, tensor: torch.Tensor) -> None:
        self._header[name] = _info(tensor, self._written)
        self._written += tensor.nbytes
        if tensor.nbytes:
            data = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
            self._write(memoryview(data).cast("B"))

    def _write(self, data: bytes | memoryview) -> None:
        # Unbuffered, so that a full disk is noticed here and not again when the object is thrown away.
        view, file = memoryview(data), self._current()
        try:
            while view:
                view = view[file.write(view[: 64 << 20]) :]
        except OSError:
            file.close()
            self._file = None
            raise

    def _current(self) -> BinaryIO:
        if self._file is None:
            raise OutputError(
                f"Writing the {self._stem!r} files failed before, so they cannot be completed. Start again."
            )
        return self._file

    def _finish_shard(self) -> None:
        with self._current() as file:
            for name, tensor in sorted(self._waiting, key=lambda item: -item[1].element_size()):
                self._put(name, tensor)
            header = _dump(self._header, self._stem)
            room = HEADER_ROOM
            if self._written < COMPACT_BELOW:
                room = len(header) + -(len(header) + 8) % ALIGNMENT
                file.seek(8 + HEADER_ROOM)
                data = file.read()
                file.seek(8 + room)
                self._write(data)
                file.truncate()
            file.seek(0)
            self._write(room.to_bytes(8, "little") + header.ljust(room))
            os.fsync(file.fileno())
        self._file = None
        self._shards.append(self._path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON. Raises OutputError if JSON cannot hold it (NaN, other types)."""
    try:
        data = (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise OutputError(f"{path} cannot be written: {error}.") from None
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_side_files(source: Path, target: Path) -> list[str]:
    """Copy tokenizer, chat template, generation config, licence and notice files; return their names, sorted.

    Code, pickles and directories are never copied.

    Raises:
        CheckpointError: such a file is no regular file, a symlink out of `source`, or larger than 256 MiB.
        OSError: the copy cannot be written.
    """
    names = side_files(source)
    for name in names:
        shutil.copyfile(regular_file(source, name), target / name)
    return names


def side_files(source: Path) -> list[str]:
    """The files of `source` that copy_side_files copies. Raises: as that."""
    found = []
    for name in sorted(list_names(source)):
        legal = name.startswith(LEGAL_PREFIXES) and Path(name).suffix.lower() in LEGAL_SUFFIXES
        if name not in SIDE_FILES and not (legal and not (source / name).is_dir()):
            continue
        path = regular_file(source, name)
        if path.stat().st_size > MAX_SIDE_FILE_BYTES:
            raise CheckpointError(f"{source / name} is larger than {MAX_SIDE_FILE_BYTES} bytes. Remove or replace it.")
        found.append(name)
    return found


def check_storable(name: str, tensor: torch.Tensor) -> None:
    """Refuse values that no reader would take back: floats that are not finite, scales that are not positive.

    Raises:
        UnsupportedError: the calibration overflowed, or the dtype cannot hold the result.
    """
    if not tensor.is_floating_point():
        return
    scale = name.endswith(("scale", "equalizer"))
    if not tensor.isfinite().all() or (scale and (tensor <= 0).any()):
        raise UnsupportedError(
            f"{name} would hold values that are not finite{', zero or negative' if scale else ''} in "
            f"{str(tensor.dtype).removeprefix('torch.')}. The model's weights or activations are beyond its range."
        )


def _remove_dead(target: Path) -> None:
    """Remove what runs to this target left behind that were killed."""
    pattern = re.compile(rf"\.{re.escape(target.name[:64])}\.partial-(\d+)-[0-9a-f]{{8}}")
    for path in target.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match is not None and not Path(f"/proc/{match[1]}").exists() and Path("/proc/self").exists():
            shutil.rmtree(path, ignore_errors=True)


def _check_target(target: Path, overwrite: bool) -> None:
    if os.path.ismount(target):
        raise OutputError(f"{target} is a mount point, which cannot be replaced. Name a directory inside it.")
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(f"{target} exists and is not a directory. Choose another place.")
    if Path.cwd().is_relative_to(target):
        raise OutputError(f"{target} is, or holds, the current directory. Name one inside it, or leave it first.")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{target} exists and is not empty. Choose another place, or ask to overwrite it.")
    try:
        is_model = "model_type" in read_object(target, "config.json")
    except CheckpointError:
        is_model = False
    if not is_model:
        raise OutputError(
            f"{target} is not a model directory (no config.json with a model_type), so it is not overwritten. "
            "Choose another place."
        )


def _swap(partial: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        partial.rename(target)
        return
    old = partial.with_name(partial.name.replace(".partial-", ".old-"))
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root):
        for name in files:
            _sync(Path(folder) / name)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a directory.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _explain(error: OSError, shown: Path, target: Path, partial: Path) -> str:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{shown} was not written: {error}. Nothing was left behind."
    written = free = 0
    with suppress(OSError):
        written = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
        free = shutil.disk_usage(partial).free
    return (
        f"{shown} was not written: {error.strerror}, after {_size(written)}, with {_size(free)} free on the disk. "
        f"Nothing was left behind. Make room, lift the quota or write elsewhere.{_leftovers(target, partial)}"
    )


def _leftovers(target: Path, current: Path | None = None) -> str:
    prefixes = tuple(f".{target.name[:64]}.{kind}-" for kind in ("partial", "old"))
    with suppress(OSError):
        for path in target.parent.iterdir():
            if path.name.startswith(prefixes) and path != current:
                return f" {path} is left over from an interrupted run; remove it unless that still runs."
    return ""


def _size(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MiB"


def _info(tensor: torch.Tensor, begin: int) -> dict[str, Any]:
    return {
        "dtype": _NAMES[tensor.dtype],
        "shape": list(tensor.shape),
        "data_offsets": [begin, begin + tensor.nbytes],
    }


def _dump(value: Any, name: str) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        raise OutputError(f"{name!r} is not a text that can be stored.") from None
