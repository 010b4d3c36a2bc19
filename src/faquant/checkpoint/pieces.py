"""Parts of long work in files of their own: what was computed before a kill is not computed again."""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from .shards import ShardWriter
from .write import sync

Tensors = dict[str, Tensor]
Keep = Callable[[str, Callable[[], Tensors]], Tensors]
"""Gives the piece of that name: the one that is kept, or what the function computes."""


def keep_nothing(name: str, compute: Callable[[], Tensors]) -> Tensors:
    """A Keep for work that is done in one go."""
    return compute()


class Pieces:
    """The pieces in a directory. Each is there as a whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def keep(self, name: str, compute: Callable[[], Tensors]) -> Tensors:
        """A Keep. Raises: OSError: the disk refuses."""
        kept = self.get(name)
        if kept is None:
            kept = compute()
            self.put(name, kept)
        return kept

    def get(self, name: str) -> Tensors | None:
        """The piece, or None."""
        path = self._path(name)
        # Copies: sums may depend on how what is summed lies in memory, and in a file it lies as it happens to.
        return {key: tensor.clone() for key, tensor in load_file(path).items()} if path.exists() else None

    def put(self, name: str, tensors: Tensors) -> None:
        """Keep a piece, in place of an older one of that name. Raises: OSError: the disk refuses."""
        stem = f"next-{name}"
        with ShardWriter(self._directory, stem, shard_bytes=1 << 62) as writer:
            for key, tensor in tensors.items():
                writer.add(key, tensor)
        (self._directory / f"{stem}.safetensors").replace(self._path(name))
        sync(self._directory)

    def _path(self, name: str) -> Path:
        return self._directory / f"piece-{name}.safetensors"
