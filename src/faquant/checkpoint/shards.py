"""Streams tensors into safetensors files; writing can be resumed after a crash."""

import ctypes
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import OutputError
from .tensors import MAX_HEADER_BYTES

ALIGNMENT = 64
HEADER_SPACE = MAX_HEADER_BYTES // 4 - 8  # a multiple of the alignment, together with the 8 bytes of its length
COMPACT_BELOW = 64 << 20
_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


class ShardWriter:
    """Streams tensors into safetensors files of at most `shard_bytes` each (one larger tensor gets a file of its own).

    The header comes first in a file, so space is reserved for it and filled at the end; small files are then rewritten
    without the gap. Tensors whose size is not a multiple of 64 bytes are written at the end of the file, so that every
    tensor is aligned. Files are moved to their names in `directory` when all are complete. Until then they are in
    `work`, if given, and `resume` can continue from a call of `state` until `work` is removed.
    """

    def __init__(self, directory: Path, stem: str, shard_bytes: int = 4 << 30, work: Path | None = None) -> None:
        self._directory, self._stem, self._shard_bytes, self._work = directory, stem, shard_bytes, work
        self._count = 0
        self._shard_of: dict[str, int] = {}
        self._total = 0
        self._closed = False
        self._file: BinaryIO | None = None
        self._start_shard()

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """JSON values and tensors for `resume`. Everything else is on disk when this returns."""
        os.fsync(self._current().fileno())
        values = {name: getattr(self, f"_{name}") for name in _STATE}
        return values, dict(self._waiting)

    @classmethod
    def resume(
        cls,
        directory: Path,
        stem: str,
        values: dict[str, Any],
        waiting: dict[str, torch.Tensor],
        work: Path,
        shard_bytes: int = 4 << 30,
    ) -> "ShardWriter":
        """The writer as it was when it returned this state; what was added since is discarded.

        Raises:
            OutputError: a file that it had written is missing or too short.
        """
        writer = cls.__new__(cls)
        writer._directory, writer._stem, writer._shard_bytes, writer._work = directory, stem, shard_bytes, work
        writer._closed = False
        for name in _STATE:
            setattr(writer, f"_{name}", values[name])
        writer._waiting = list(waiting.items())
        for number in range(1, writer._count + 1):
            path = writer._partial(number)
            if not path.exists():
                # It was moved to its name already.
                found = [*directory.glob(f"{stem}-{number:05}-of-*.safetensors"), directory / f"{stem}.safetensors"]
                found[0].rename(path)
        writer._file = writer._partial(writer._count).open("r+b", buffering=0)
        end = 8 + HEADER_SPACE + writer._written
        if writer._file.seek(0, os.SEEK_END) < end:
            raise OutputError(f"{writer._partial(writer._count)} has lost data that was written to it. Start over.")
        writer._file.truncate(end)
        writer._file.seek(end)
        return writer

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor.

        Raises:
            OutputError: the name was added before, or tensor or name cannot be stored.
            OSError: writing fails (`output_directory` converts it to an OutputError).
        """
        if self._closed:
            raise OutputError(f"Tensor {name!r} was added after the files of {self._stem!r} were closed.")
        if name in self._shard_of:
            raise OutputError(f"Tensor {name!r} was added twice; names in a checkpoint must be unique.")
        if tensor.dtype not in _NAMES or tensor.layout != torch.strided or tensor.is_meta:
            raise OutputError(
                f"Tensor {name!r} ({tensor.dtype}, {tensor.layout}) cannot be stored in a safetensors file."
            )
        tensor = tensor.detach().resolve_neg().cpu().contiguous()
        entry_bytes = len(_dump({name: _info(tensor, 1 << 60)}, name))
        if name == "__metadata__" or entry_bytes > HEADER_SPACE // 2:
            raise OutputError(f"A tensor cannot be named {name[:80]!r} in a safetensors file.")
        full = self._bytes and self._bytes + tensor.nbytes > self._shard_bytes
        if full or self._header_bytes + entry_bytes > HEADER_SPACE:
            self._finish_shard()
            self._start_shard()
        self._header_bytes += entry_bytes
        self._bytes += tensor.nbytes
        self._total += tensor.nbytes
        self._shard_of[name] = self._count - 1
        if tensor.nbytes % ALIGNMENT:
            # A copy: the caller may modify a tensor after adding it.
            self._waiting.append((name, tensor.clone()))
        else:
            self._put(name, tensor)

    def close(self) -> None:
        """Finish the last file, move all files to their names, and write the index if there are several. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._finish_shard()
        names = [f"{self._stem}-{i:05}-of-{self._count:05}.safetensors" for i in range(1, self._count + 1)]
        if self._count == 1:
            names = [f"{self._stem}.safetensors"]
        for number, name in enumerate(names, 1):
            self._give_name(self._partial(number), self._directory / name)
        if self._count > 1:
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

    def _partial(self, number: int) -> Path:
        return (self._work or self._directory) / f".{self._stem}-{number:05}.partial"

    def _start_shard(self) -> None:
        self._count += 1
        self._file = self._partial(self._count).open("w+b", buffering=0)
        self._file.seek(8 + HEADER_SPACE)
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
        # Unbuffered, so that a full disk is detected here and not again when the object is deleted.
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
                f"Writing the {self._stem!r} files failed before, so they cannot be completed. Start over."
            )
        return self._file

    def _finish_shard(self) -> None:
        with self._current() as file:
            for name, tensor in sorted(self._waiting, key=lambda item: -item[1].element_size()):
                self._put(name, tensor)
            header = _dump(self._header, self._stem)
            file.seek(0)
            self._write(HEADER_SPACE.to_bytes(8, "little") + header.ljust(HEADER_SPACE))
            os.fsync(file.fileno())
        self._file = None

    def _give_name(self, partial: Path, final: Path) -> None:
        if partial.stat().st_size - 8 - HEADER_SPACE >= COMPACT_BELOW:
            partial.rename(final)
            return
        # A copy, since the run may be resumed with the partial file.
        with partial.open("rb") as old, final.open("wb", buffering=0) as self._file:
            old.seek(8)
            header = old.read(HEADER_SPACE).rstrip(b" ")
            space = len(header) + -(len(header) + 8) % ALIGNMENT
            self._write(space.to_bytes(8, "little") + header.ljust(space) + old.read())
            os.fsync(self._file.fileno())
        self._file = None
        if self._work is None:
            partial.unlink()


_STATE = ("count", "shard_of", "total", "header", "header_bytes", "bytes", "written")


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
        raise OutputError(f"{name!r} is not a string that can be stored.") from None
