"""Random access to the tensors of a checkpoint directory. Files are not trusted, and tensors are read on demand."""

import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError, UnsupportedError
from ..kernels.arrays import Stored
from .files import find_files, regular_file, unique_keys

MAX_HEADER_BYTES = 4 << 20  # some 30,000 tensors; larger ones take seconds to parse
MAPPED_BYTES = 1 << 20
"""Smaller tensors are not mapped: each mapping keeps its file open, and a model has thousands of small tensors."""
_KINDS: dict[str, tuple[str, type[np.generic]]] = {
    "BOOL": ("bool", np.bool_),
    "U8": ("uint8", np.uint8),
    "I8": ("int8", np.int8),
    "I16": ("int16", np.int16),
    "I32": ("int32", np.int32),
    "I64": ("int64", np.int64),
    "F16": ("float16", np.float16),
    "BF16": ("bfloat16", np.uint16),
    "F32": ("float32", np.float32),
    "F64": ("float64", np.float64),
}
"""By safetensors' name: the dtype's usual name, and the NumPy dtype that holds it."""

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")


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
    order: npt.NDArray[np.int64] | None = None  # of the rows; None: as stored

    def part(self, rows: range, order: npt.NDArray[np.int64] | None) -> "_Entry":
        """These rows, in this order."""
        size = (self.end - self.begin) // self.shape[0]
        begin, end = self.begin + rows.start * size, self.begin + rows.stop * size
        return replace(self, shape=(len(rows), *self.shape[1:]), begin=begin, end=end, order=order)


class Rows(NamedTuple):
    """Rows of a tensor, in this order (None: as stored), as a tensor of their own."""

    source: str
    rows: range
    order: npt.NDArray[np.int64] | None = None


class TensorFiles:
    """The tensors of a directory, whose files may have any of the known names.

    `get` maps large tensors, for weights that are packed or looked up at once. `read` copies, so that a file that is
    truncated later causes an error, not a SIGBUS. Only mapped files stay open between calls. Thread-safe.
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
                        f"{directory}: tensor {tensor!r} is both in {entries[tensor].file.path.name!r} and in {name!r}."
                        " Remove the file that is left over from another checkpoint."
                    )
                if weight_map is not None and weight_map.get(tensor) != name:
                    raise CheckpointError(
                        f"{directory}: the index does not list tensor {tensor!r}, which is in {name!r}. "
                        "Index and parts do not belong together; download them again."
                    )
                entries[tensor] = entry
        lost = [tensor for tensor in weight_map or {} if tensor not in entries]
        if lost:
            raise CheckpointError(
                f"{directory}: the index lists tensor {lost[0]!r} in {(weight_map or {})[lost[0]]!r}, which does not "
                f"hold it ({len(lost)} such). Index and parts do not belong together; download them again."
            )
        return cls(directory, stem, entries)

    def renamed(self, names: Mapping[str, str]) -> "TensorFiles":
        """The same tensors; those in `names` have new names."""
        entries = {names.get(name, name): entry for name, entry in self._entries.items()}
        return TensorFiles(self.directory, self.stem, entries)

    def divided(self, parts: Mapping[str, Rows]) -> "TensorFiles":
        """The same tensors; those that `parts` divide are there only as those parts, by their names."""
        sources = {part.source for part in parts.values()}
        entries = {name: entry for name, entry in self._entries.items() if name not in sources}
        entries |= {name: self._entry(part.source).part(part.rows, part.order) for name, part in parts.items()}
        return TensorFiles(self.directory, self.stem, entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def names(self) -> list[str]:
        """All tensor names, in the order in which the files hold them."""
        return list(self._entries)

    @property
    def total_bytes(self) -> int:
        """Total size of all tensors in bytes, without headers."""
        return sum(entry.end - entry.begin for entry in self._entries.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises CheckpointError if the tensor is missing."""
        return self._entry(name).shape

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def dtypes(self) -> dict[str, str]:
        """Dtypes of all tensors. Raises: UnsupportedError: one of them is not supported."""
        return {name: self._kind(entry, name)[0] for name, entry in self._entries.items()}

    def fingerprint(self) -> str:
        """sha256 over the names, dtypes, shapes and bytes of all tensors."""
        digest = hashlib.sha256()
        for name in sorted(self._entries):
            digest.update(f"{name} torch.{self.dtype(name)} {list(self.shape(name))}".encode())
            digest.update(self.read(name).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def dtype(self, name: str) -> str:
        """Such as "bfloat16".

        Raises:
            CheckpointError: the tensor is missing.
            UnsupportedError: its dtype is not supported.
        """
        return self._kind(self._entry(name), name)[0]

    def nbytes(self, name: str) -> int:
        """The size of a tensor in bytes.

        Raises:
            CheckpointError: the tensor is missing.
        """
        entry = self._entry(name)
        return entry.end - entry.begin

    def get(self, name: str) -> Stored:
        """Map a tensor: returns a read-only array whose values are read from the file on access. Tensors below
        MAPPED_BYTES are copied.

        Raises:
            CheckpointError: no such tensor, or its file cannot be read or changed since `open`.
            UnsupportedError: its dtype is not supported.
        """
        entry = self._entry(name)
        kind = self._kind(entry, name)[1]
        count = (entry.end - entry.begin) // np.dtype(kind).itemsize
        begin = entry.file.data_start + entry.begin
        if entry.end - entry.begin < MAPPED_BYTES or begin % np.dtype(kind).itemsize or entry.order is not None:
            array = self.read(name)  # small, reordered, or unaligned because some writers leave headers of odd length
            array.flags.writeable = False
            return array
        page = begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        with _opened(entry, name) as descriptor:
            size = begin - page + entry.end - entry.begin
            mapped = mmap.mmap(descriptor, size, prot=mmap.PROT_READ, offset=page)
        return np.frombuffer(mapped, kind, count, begin - page).reshape(entry.shape)

    def read(self, name: str) -> Stored:
        """Read a tensor into new memory.

        Raises:
            CheckpointError: no such tensor, not enough memory, or its file cannot be read or changed since `open`.
            UnsupportedError: its dtype is not supported.
        """
        entry = self._entry(name)
        kind = self._kind(entry, name)[1]
        try:
            array = np.empty(entry.shape, kind)
        except (ValueError, MemoryError) as error:
            raise CheckpointError(
                f"{entry.file.path}: tensor {name!r} of {entry.end - entry.begin} bytes does not fit into memory: "
                f"{error}."
            ) from None
        if array.size:
            with _opened(entry, name) as descriptor:
                _read_into(descriptor, array.reshape(-1).view(np.uint8).data, entry.file.data_start + entry.begin)
        return array if entry.order is None else array[entry.order]

    def read_all(self, names: Iterable[str]) -> dict[str, Stored]:
        """Several tensors. Raises: as read."""
        return {name: self.read(name) for name in names}

    @staticmethod
    def _kind(entry: _Entry, name: str) -> tuple[str, type[np.generic]]:
        if entry.dtype not in _KINDS:
            raise UnsupportedError(
                f"{entry.file.path}: tensor {name!r} has dtype {entry.dtype}, which is not supported; these are: "
                f"{', '.join(_KINDS)}. Start from a checkpoint in bfloat16, float16 or float32."
            )
        return _KINDS[entry.dtype]

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise CheckpointError(
                f"{self.directory}: tensor {name!r} is missing from the {self.stem!r} files. Is the model complete?"
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
                raise CheckpointError(f"{shown} is truncated or not a safetensors file. Download it again.")
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{shown} has a header of {length} bytes; the limit is {MAX_HEADER_BYTES}. "
                    "If the file is not damaged, split the checkpoint into more parts."
                )
            # The library checks types, shapes, and that the tensors fill the file without gaps or overlaps.
            # framework="np", because "pt" maps the file as private and writable, which fails for files larger than
            # memory.
            with safe_open(path, framework="np"):
                pass
            header = json.loads(os.pread(descriptor, length, 8).decode("utf-8"), object_pairs_hook=unique_keys)
        finally:
            os.close(descriptor)
    except (OSError, SafetensorError, RuntimeError, MemoryError, ValueError) as error:
        raise CheckpointError(f"{shown} is not a valid safetensors file: {error}. Download it again.") from None
    header.pop("__metadata__", None)
    file = _File(path, 8 + length, status.st_size, status.st_mtime_ns)
    entries = {}
    for tensor, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if any(size >= 1 << 48 for size in info["shape"]):
            raise CheckpointError(f"{shown}: tensor {tensor!r} has the impossible shape {info['shape']}.")
        entries[tensor] = _Entry(file, info["dtype"], tuple(info["shape"]), *info["data_offsets"])
    return entries


def _open(path: Path) -> int:
    # Non-blocking, in case the file was replaced by a pipe since it was checked.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


@contextmanager
def _opened(entry: _Entry, name: str) -> Iterator[int]:
    """The tensor's file, open and unchanged.

    Raises:
        CheckpointError: it cannot be read, or has changed since its header was read.
    """
    where = f"{entry.file.path}: tensor {name!r}"
    try:
        descriptor = _open(entry.file.path)
        try:
            status = os.fstat(descriptor)
            if (status.st_size, status.st_mtime_ns) != (entry.file.size, entry.file.modified_ns):
                raise CheckpointError(f"{where} cannot be read: the file has changed since it was opened. Start over.")
            yield descriptor
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: from mmap, if the file is shorter by now
        raise CheckpointError(f"{where} cannot be read: {error}.") from None


def _read_into(descriptor: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done : done + (1 << 30)]], offset + done)
        if count == 0:
            raise OSError("the file ends too early")
        done += count


class TensorDict:
    """Arrays in memory, with the interface of TensorFiles."""

    def __init__(self, tensors: Mapping[str, Stored]) -> None:
        self._tensors = tensors

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def names(self) -> list[str]:
        """All names."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """Dtype of a tensor."""
        kind = str(self._tensors[name].dtype)
        return "bfloat16" if kind == "uint16" else kind

    def get(self, name: str) -> Stored:
        """The array itself."""
        return self._tensors[name]

    def read_all(self, names: Iterable[str]) -> dict[str, Stored]:
        """The arrays themselves."""
        return {name: self._tensors[name] for name in names}
