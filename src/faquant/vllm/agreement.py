"""What the ranks of one service must have in common. Each node reads a directory and a command line of its own."""

import hashlib

from ..checkpoint.tensors import MAPPED_BYTES
from ..errors import UnsupportedError
from ..formats.base import Opened


def identity(opened: Opened) -> str:
    """sha256 of the configuration, of the names, dtypes and shapes of all tensors, and of the values of small ones.
    Among these are norms and scales, which differ in models whose large tensors do."""
    files = opened.files
    digest = hashlib.sha256(f"{opened.config} {opened.metadata}".encode())
    for name in sorted(files.names()):
        digest.update(f"{name} {files.dtype(name)} {files.shape(name)}".encode())
        if files.nbytes(name) < MAPPED_BYTES:
            digest.update(files.read(name).tobytes())
    return digest.hexdigest()


def check_equal(found: list[tuple[str, str]]) -> None:
    """Check what ranks have: the identity of the checkpoint, and `row` or `shard` (scales_of).

    Raises:
        UnsupportedError: they differ.
    """
    checkpoint, scales = found[0]
    for rank, (its_checkpoint, its_scales) in enumerate(found):
        if its_checkpoint != checkpoint:
            raise UnsupportedError(
                f"Rank {rank} has read another checkpoint than rank 0 ({its_checkpoint[:12]}, not {checkpoint[:12]}). "
                "Give each node a copy of the same directory."
            )
        if its_scales != scales:
            raise UnsupportedError(
                f"faquant_scales is {its_scales} on rank {rank}, but {scales} on rank 0. Give each node the same "
                "--additional-config."
            )
