"""What the ranks of one service must have in common. Each node has a directory, packages and a command line of its
own."""

import hashlib
from typing import NamedTuple

import numpy as np

from ..checkpoint.tensors import MAPPED_BYTES
from ..errors import UnsupportedError
from ..formats.base import Opened
from ..kernels.arrays import Stored

PLACES, PLACE_BYTES = 16, 256


class RankSettings(NamedTuple):
    """What a rank has.

    Attributes:
        checkpoint: its identity.
        version: faquant's.
        scales: `row` or `shard` (scales_of).
    """

    checkpoint: str
    version: str
    scales: str


def identity(opened: Opened) -> str:
    """sha256 of the configuration, of the names, dtypes and shapes of all tensors, and of their bytes: all of those
    below 1 MiB, and 4 KiB in 16 places of each larger one, which would take minutes to read as a whole."""
    files = opened.files
    digest = hashlib.sha256(f"{opened.config} {opened.metadata}".encode())
    for name in sorted(files.names()):
        digest.update(f"{name} {files.dtype(name)} {files.shape(name)}".encode())
        if files.nbytes(name) < MAPPED_BYTES:
            digest.update(files.read(name).tobytes())
        else:
            digest.update(_some_bytes(files.get(name)))
    return digest.hexdigest()


def _some_bytes(tensor: Stored) -> bytes:
    """Of places from the first to the last."""
    stored = tensor.reshape(-1).view(np.uint8)
    starts = np.linspace(0, max(0, len(stored) - PLACE_BYTES), PLACES, dtype=np.int64)
    return b"".join(stored[start : start + PLACE_BYTES].tobytes() for start in starts)


def check_equal(found: list[RankSettings]) -> None:
    """Check what ranks have.

    Raises:
        UnsupportedError: they differ.
    """
    first = found[0]
    for rank, own in enumerate(found):
        if own.version != first.version:
            raise UnsupportedError(
                f"Rank {rank} runs faquant {own.version}, but rank 0 {first.version}. Install the same version on each "
                "node."
            )
        if own.checkpoint != first.checkpoint:
            raise UnsupportedError(
                f"Rank {rank} has read another checkpoint than rank 0 ({own.checkpoint[:12]}, not "
                f"{first.checkpoint[:12]}). Give each node a copy of the same directory."
            )
        if own.scales != first.scales:
            raise UnsupportedError(
                f"faquant_scales is {own.scales} on rank {rank}, but {first.scales} on rank 0. Give each node the same "
                "--additional-config."
            )
