"""Intermediate results of long computations in files, so that a killed run does not compute them again."""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from .shards import ShardWriter
from .write import sync

Tensors = dict[str, Tensor]
Keep = Callable[[str, Callable[[], Tensors]], Tensors]
"""Returns the saved piece with this name, or calls the function to compute it."""


def keep_nothing(name: str, compute: Callable[[], Tensors]) -> Tensors:
    """A Keep that saves nothing."""
    return compute()


class Pieces:
    """The pieces in a directory. Each is written atomically."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def keep(self, name: str, compute: Callable[[], Tensors]) -> Tensors:
        """A Keep. Raises: OSError: a piece cannot be written."""
        kept = self.get(name)
        if kept is None:
            kept = compute()
            self.put(name, kept)
        return kept

    def get(self, name: str) -> Tensors | None:
        """The piece, or None if there is none."""
        path = self._path(name)
        # Copies: sums can depend on the alignment of their operands, which is arbitrary in a file.
        return {key: tensor.clone() for key, tensor in load_file(path).items()} if path.exists() else None

    def put(self, name: str, tensors: Tensors) -> None:
        """Save a piece, replacing an older one with this name. Raises: OSError: it cannot be written."""
        stem = f"next-{name}"
        with ShardWriter(self._directory, stem, shard_bytes=1 << 62) as writer:
            for key, tensor in tensors.items():
                writer.add(key, tensor)
        (self._directory / f"{stem}.safetensors").replace(self._path(name))
        sync(self._directory)

    def _path(self, name: str) -> Path:
        return self._directory / f"piece-{name}.safetensors"
