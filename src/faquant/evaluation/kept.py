"""Saves the partial results of an evaluation in a directory next to the measured one, so that it can resume."""

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import SafetensorError

from ..checkpoint.files import read_object
from ..checkpoint.pieces import Pieces, Tensors
from ..checkpoint.shards import write_json
from ..errors import CheckpointError
from .streaming import Streams

SECONDS = 10.0
"""Seconds of work that a kill may lose. Saving more often is too expensive; a short evaluation writes nothing."""
_IDENTITY = "identity.json"


@contextmanager
def kept_beside(directory: Path, identity: Mapping[str, str]) -> Iterator["Kept"]:
    """The partial results of an evaluation of `directory`, kept until it succeeds or fails with an error.

    They survive a kill, an interrupt and a lack of memory. If they cannot be written, or another evaluation is running,
    nothing is saved, silently.

    Args:
        identity: what the results depend on; results with another identity are discarded.
    """
    kept = Kept(directory, identity)
    try:
        yield kept
    except (OSError, MemoryError, KeyboardInterrupt, SystemExit):
        kept.close()
        raise
    except BaseException:
        kept.forget()
        raise
    kept.forget()


class Kept:
    """Pieces by name, each replaced atomically."""

    def __init__(self, directory: Path, identity: Mapping[str, str]) -> None:
        place = directory.resolve()
        self._path = place.with_name(f".{place.name[:64]}.evaluation")
        self._pieces = Pieces(self._path)
        self._identity = dict(identity)
        self._lock: TextIO | None = None
        self._last = time.monotonic()
        self._possible = True
        if self._path.is_dir():
            self._begin()

    def load(self, name: str) -> Tensors | None:
        """A piece, or None."""
        if self._lock is None:
            return None
        try:
            return self._pieces.get(name)
        except (OSError, SafetensorError):
            return None  # damaged: compute it again

    def save(self, name: str, make: Callable[[], Tensors]) -> None:
        """Save the result of `make`, if the last save was a while ago."""
        if not self._possible or time.monotonic() - self._last < SECONDS:
            return
        if self._lock is None:
            self._begin()
        if self._possible:
            try:
                self._pieces.put(name, make())
            except OSError:
                self.forget()
        self._last = time.monotonic()

    def keep(self, name: str, compute: Callable[[], Tensors]) -> Tensors:
        """The saved piece, or the result of `compute`, which is saved."""
        piece = self.load(name)
        if piece is None:
            piece = compute()
            self.save(name, lambda: piece)
        return piece

    def close(self) -> None:
        """Stop saving."""
        if self._lock is not None:
            self._lock.close()
        self._lock, self._possible = None, False

    def forget(self) -> None:
        """Remove the saved results and stop saving."""
        if self._lock is not None:
            shutil.rmtree(self._path, ignore_errors=True)
        self.close()

    def _begin(self) -> None:
        """Lock the directory for this evaluation, and keep its content if it has the same identity."""
        try:
            self._path.mkdir(exist_ok=True)
            self._lock = (self._path / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            return
        try:
            found = read_object(self._path, _IDENTITY)
        except CheckpointError:
            found = {}
        try:
            if found == self._identity:
                return
            for path in self._path.iterdir():
                if path.name != "lock":
                    path.unlink()
            write_json(self._path / _IDENTITY, self._identity)
        except OSError:
            self.forget()


def packed(layers: int, streams: Streams, values: Any) -> Tensors:
    """The streams after `layers` layers and JSON values, as one piece."""
    numbers: dict[int, int] = {}
    tensors: Tensors = {}
    for some in streams.values():
        for stream in some:
            number = numbers.setdefault(id(stream), len(numbers))
            tensors[f"stream {number}"] = stream
    places = {name: [numbers[id(stream)] for stream in some] for name, some in streams.items()}
    text = json.dumps({"layers": layers, "streams": places, "values": values})
    return {**tensors, "json": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}


def unpacked(piece: Tensors) -> tuple[int, Streams, Any]:
    """The inverse of `packed`; streams that several models shared are shared again."""
    found = json.loads(bytes(piece["json"].numpy()))
    streams = {name: [piece[f"stream {number}"] for number in places] for name, places in found["streams"].items()}
    return found["layers"], streams, found["values"]
