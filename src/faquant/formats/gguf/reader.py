"""Reads the header of a GGUF file. The file is not trusted, so every length is checked against its size.

The layout is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the sizes of quantized blocks are the `gguf`
package's.
"""

import math
import mmap
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import CheckpointError, UnsupportedError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ENTRIES = 1 << 17

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _BOOL, _FLOAT32 = 8, 9, 7, 6


@dataclass(frozen=True)
class GgufTensor:
    """A tensor in the file. `shape` is in torch's order; `packed` [rows, bytes per row] is a view of the file."""

    name: str
    shape: tuple[int, ...]
    quantization: int
    packed: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class GgufFile:
    """The content of a GGUF file; tensor data is mapped and read on access."""

    source: str
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read the header of `path` and map its tensors; if `path` is one of several parts, read them all.

    Raises:
        CheckpointError: the file, or another part, is missing, truncated, or not a GGUF file; or the parts do not
            belong together.
        UnsupportedError: its version, byte order or a quantization is not supported.
    """
    file = _read_one(path)
    count = file.metadata.get("split.count", 0)
    return file if count in (0, 1) else _join([_read_one(part) for part in _parts(path, count)], str(path))


def _parts(path: Path, count: object) -> list[Path]:
    """All parts of the file of which `path` is one."""
    name = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.gguf", path.name)
    if name is None or int(name[2]) != count:
        raise CheckpointError(
            f"{path} is one of {count} parts, which must have names such as NAME-00001-of-00003.gguf. "
            "Put all of them in one directory, under their published names."
        )
    return [path.with_name(f"{name[1]}-{number:05}-of-{name[2]}.gguf") for number in range(1, int(name[2]) + 1)]


def _join(parts: list[GgufFile], source: str) -> GgufFile:
    """One file of several; the first part has the metadata."""
    tensors: dict[str, GgufTensor] = {}
    for number, part in enumerate(parts):
        place = (part.metadata.get("split.no"), part.metadata.get("split.count"))
        if place != (number, len(parts)):
            raise CheckpointError(
                f"{part.source} is not part {number + 1} of {len(parts)}; it was renamed or mixed up."
            )
        if twice := tensors.keys() & part.tensors.keys():
            raise CheckpointError(f"{part.source} holds the tensor {min(twice)!r}, which is also in another part.")
        tensors |= part.tensors
    expected = parts[0].metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise CheckpointError(
            f"{source}: its parts hold {len(tensors)} tensors, not {expected}; do they belong to one model?"
        )
    return GgufFile(source, parts[0].metadata, tensors)


def _read_one(path: Path) -> GgufFile:
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not a regular file. Pass a GGUF file.")
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size < 24:
                raise CheckpointError(f"{path} is not a GGUF file: it has {size} bytes.")
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    return _HeaderParser(data, str(path)).parse()


class _HeaderParser:
    """Parses the header, with bounds checks."""

    def __init__(self, data: mmap.mmap, source: str) -> None:
        self.data = data
        self.source = source
        self.at = 0

    def take(self, length: int) -> int:
        """Skip `length` bytes and return their offset."""
        start = self.at
        if length > len(self.data) - start:
            raise CheckpointError(
                f"{self.source} ends too early: {length} bytes are missing or damaged at offset {start} of "
                f"{len(self.data)}. Was the download interrupted?"
            )
        self.at = start + length
        return start

    def scalar(self, code: str) -> Any:
        # As in struct's "?", bytes other than 0 and 1 are accepted.
        return struct.unpack_from(f"<{code}", self.data, self.take(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        length = self.scalar("Q")
        start = self.take(length)
        try:
            return str(self.data[start : start + length], encoding="utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.source}: the text at offset {start} is not UTF-8.") from None

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise CheckpointError(f"{self.source}: unknown value type {kind} at offset {self.at}; the file is damaged.")
        value = self.scalar(_SCALARS[kind])
        # The shortest decimal of a float32: 1e-05 instead of 9.999999747378752e-06.
        return float(str(np.float32(value))) if kind == _FLOAT32 else value

    def array(self) -> list[Any]:
        kind, length = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            if length > (len(self.data) - self.at) // 8:  # even that many empty strings would not fit
                self.take(8 * length)
            return [self.string() for _ in range(length)]
        if kind not in _SCALARS:
            raise CheckpointError(f"{self.source}: unknown array type {kind} at offset {self.at}; the file is damaged.")
        code = _SCALARS[kind]
        start = self.take(struct.calcsize(f"<{code}") * length)
        values: list[Any] = np.frombuffer(self.data, np.dtype(code).newbyteorder("<"), length, start).tolist()
        return values

    def parse(self) -> GgufFile:
        if self.data[:4] != MAGIC:
            raise CheckpointError(
                f"{self.source} is not a GGUF file: it begins with {self.data[:4]!r}, not with {MAGIC!r}."
            )
        self.take(4)
        version = self.scalar("I")
        if version not in VERSIONS:
            what = "big-endian" if version >> 24 else f"version {version}"
            raise UnsupportedError(
                f"{self.source} is a {what} GGUF file; little-endian versions 2 and 3 are supported."
            )
        tensor_count, key_count = self.scalar("Q"), self.scalar("Q")
        if max(tensor_count, key_count) > MAX_ENTRIES:
            raise CheckpointError(
                f"{self.source} claims {tensor_count} tensors and {key_count} keys; the file is damaged."
            )
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key, kind = self.string(), self.scalar("I")
            if key in metadata:
                raise CheckpointError(f"{self.source} holds the key {key!r} twice.")
            metadata[key] = self.value(kind)
        entries = [self.tensor_entry() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise CheckpointError(f"{self.source}: general.alignment must be a power of two, not {alignment!r}.")
        base = -(-self.at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, quantization, offset in entries:
            if name in tensors:
                raise CheckpointError(f"{self.source} holds the tensor {name!r} twice.")
            tensors[name] = self.tensor(name, shape, quantization, base + offset)
        return GgufFile(self.source, metadata, tensors)

    def tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self.string(), self.scalar("I")
        if not 1 <= dimensions <= 4:
            raise CheckpointError(
                f"{self.source}: tensor {name!r} claims {dimensions} dimensions; the file is damaged."
            )
        shape = tuple(reversed([self.scalar("Q") for _ in range(dimensions)]))  # ggml lists the fastest first
        return name, shape, self.scalar("I"), self.scalar("Q")

    def tensor(self, name: str, shape: tuple[int, ...], quantization: int, start: int) -> GgufTensor:
        sizes = _block_sizes()
        if quantization not in sizes:
            raise UnsupportedError(f"{self.source}: tensor {name!r} has the unknown quantization {quantization}.")
        block, block_bytes = sizes[quantization]
        columns, rows = shape[-1], math.prod(shape[:-1])
        if columns % block or not columns or not rows:
            raise CheckpointError(
                f"{self.source}: tensor {name!r} of shape {shape} is not divisible into blocks of {block}."
            )
        row_bytes = columns // block * block_bytes
        self.at = min(start, len(self.data))
        self.take(rows * row_bytes + start - self.at)
        packed = np.frombuffer(self.data, np.uint8, rows * row_bytes, start).reshape(rows, row_bytes)
        return GgufTensor(name, shape, quantization, packed)


def _block_sizes() -> dict[int, tuple[int, int]]:
    """Elements and bytes per block, by quantization type."""
    return {int(kind): sizes for kind, sizes in gguf_package().GGML_QUANT_SIZES.items()}


def gguf_package() -> Any:
    try:
        import gguf
    except ImportError:
        raise UnsupportedError("GGUF files require the package gguf: pip install gguf.") from None
    return gguf
