"""Random access to the tensors of a checkpoint directory; nothing is trusted, nothing read unless asked for."""

import ctypes
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError, UnsupportedError
from .files import find_files, regular_file, unique_keys

MAX_HEADER_BYTES = 4 << 20  # some 30,000 tensors; larger ones take seconds to parse
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@dataclass(frozen=True)
class _File:
    path: Path
    data_start: int
    size: int
    modified_ns: int


@dataclass(frozen=True)
class _Entry:
    file: _File
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFiles:
    """The tensors of a directory, whichever of the known names its files have.

    `get` copies a tensor out of its file instead of mapping it: a file that is truncated or replaced later is then an
    error and neither a SIGBUS nor a silent change of the weights. No file stays open between calls; threads may share
    the object.
    """

    def __init__(self, directory: Path, stem: str, entries: Mapping[str, _Entry]) -> None:
        self.directory = directory
        self.stem = stem
        self._entries = dict(entries)

    @classmethod
    def open(cls, directory: Path) -> "TensorFiles":
        """Find the tensor files of `directory` and check their headers; no tensor is read.

        Raises:
            CheckpointError: no file, several families of files, or a file that is missing, damaged or contradictory.
            UnsupportedError: the weights are pickles.
        """
        stem, names, weight_map = find_files(directory)
        entries: dict[str, _Entry] = {}
        for name in names:
            for tensor, entry in _read_header(directory, name).items():
                if tensor in entries:
                    raise CheckpointError(
                        f"{directory}: tensor {tensor!r} stands in {entries[tensor].file.path.name!r} and in {name!r}. "
                        "Remove the file that is left over from another checkpoint."
                    )
                if weight_map is not None and weight_map.get(tensor) != name:
                    raise CheckpointError(
                        f"{directory}: the index does not say that tensor {tensor!r} is in {name!r}, where it is. "
                        "Index and parts are not of one checkpoint; fetch them again."
                    )
                entries[tensor] = entry
        lost = [tensor for tensor in weight_map or {} if tensor not in entries]
        if lost:
            raise CheckpointError(
                f"{directory}: the index names tensor {lost[0]!r} in {(weight_map or {})[lost[0]]!r}, which does not "
                f"hold it ({len(lost)} such). Index and parts are not of one checkpoint; fetch them again."
            )
        return cls(directory, stem, entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def names(self) -> list[str]:
        """All tensor names, file by file, in the order of their bytes."""
        return list(self._entries)

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors, without the headers."""
        return sum(entry.end - entry.begin for entry in self._entries.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises CheckpointError if there is no such tensor."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Raises CheckpointError if there is no such tensor, UnsupportedError if its dtype is not one we read."""
        entry = self._entry(name)
        if entry.dtype not in DTYPES:
            raise UnsupportedError(
                f"{entry.file.path}: tensor {name!r} has dtype {entry.dtype}, which is not supported; these are: "
                f"{', '.join(DTYPES)}. Start from a checkpoint in bfloat16, float16 or float32."
            )
        return DTYPES[entry.dtype]

    def get(self, name: str) -> torch.Tensor:
        """Read a tensor into memory of its own (CPU, contiguous).

        Raises:
            CheckpointError: no such tensor, not enough memory, or its file cannot be read or changed since `open`.
            UnsupportedError: its dtype is not one we read.
        """
        entry, dtype = self._entry(name), self.dtype(name)
        where = f"{entry.file.path}: tensor {name!r}"
        try:
            flat = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
            tensor = flat.view(dtype).reshape(entry.shape)
        except (RuntimeError, TypeError, MemoryError) as error:
            raise CheckpointError(
                f"{where} of {entry.end - entry.begin} bytes has no room in memory: {error}."
            ) from None
        if flat.numel() == 0:
            return tensor
        try:
            descriptor = _open(entry.file.path)
            try:
                status = os.fstat(descriptor)
                if (status.st_size, status.st_mtime_ns) != (entry.file.size, entry.file.modified_ns):
                    raise CheckpointError(f"{where} cannot be read: the file changed since it was opened. Start again.")
                _read_into(descriptor, flat, entry.file.data_start + entry.begin)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise CheckpointError(f"{where} cannot be read: {error}.") from None
        return tensor

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise CheckpointError(
                f"{self.directory}: there is no tensor {name!r} in its {self.stem!r} files. Is the checkpoint complete?"
            ) from None


def _read_header(directory: Path, name: str) -> dict[str, _Entry]:
    shown = directory / name
    path = regular_file(directory, name)
    try:
        descriptor = _open(path)
        try:
            status = os.fstat(descriptor)
            length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
            if status.st_size < 8 or length > status.st_size - 8:
                raise CheckpointError(f"{shown} is truncated or no safetensors file. Fetch it again.")
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{shown} has a header of {length} bytes; more than {MAX_HEADER_BYTES} are not read. "
                    "Split the checkpoint into more parts if that is its true size."
                )
            # The library checks types, shapes, and that the tensors fill the file without overlap or hole. Its pt
            # framework maps the file as private and writable, which fails for files larger than memory; np does not.
            with safe_open(path, framework="np"):
                pass
            header = json.loads(os.pread(descriptor, length, 8).decode("utf-8"), object_pairs_hook=unique_keys)
        finally:
            os.close(descriptor)
    except (OSError, SafetensorError, RuntimeError, MemoryError, ValueError) as error:
        raise CheckpointError(f"{shown} is not a sound safetensors file: {error}. Fetch it again.") from None
    header.pop("__metadata__", None)
    file = _File(path, 8 + length, status.st_size, status.st_mtime_ns)
    entries = {}
    for tensor, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if any(size >= 1 << 48 for size in info["shape"]):
            raise CheckpointError(f"{shown}: tensor {tensor!r} has the impossible shape {info['shape']}.")
        entries[tensor] = _Entry(file, info["dtype"], tuple(info["shape"]), *info["data_offsets"])
    return entries


def _open(path: Path) -> int:
    # Non-blocking, in case the file was replaced by a pipe since it was looked at.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _read_into(descriptor: int, flat: torch.Tensor, offset: int) -> None:
    view = memoryview((ctypes.c_char * flat.numel()).from_address(flat.data_ptr())).cast("B")
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done : done + (1 << 30)]], offset + done)
        if count == 0:
            raise OSError("the file ends too early")
        done += count


class TensorDict:
    """Tensors in memory, asked for as those of TensorFiles."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def names(self) -> list[str]:
        """All names."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor."""
        return self._tensors[name].dtype

    def get(self, name: str) -> torch.Tensor:
        """The tensor itself."""
        return self._tensors[name]
