"""Writing checkpoint directories atomically: a failure leaves nothing that loads."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError, OutputError, UnsupportedError
from .files import read_object

if TYPE_CHECKING:
    import torch

    from .shards import ShardWriter


@contextmanager
def output_directory(
    target: Path, overwrite: bool = False, needed_bytes: int | None = None, keep: Path | None = None
) -> Iterator[Path]:
    """Yield a temporary directory next to `target`, which is renamed to `target` if the block succeeds.

    On any exception it is removed and `target` stays as it was. `needed_bytes`, if known, is compared with the free
    disk space first. With `overwrite`, an existing model directory is replaced; it is removed last. `keep` is a
    directory that the block reads, so it must not be `target` or inside of it.

    Raises:
        OutputError: `target` exists and may not be replaced, or the block raised an OSError.
    """
    shown = target
    try:
        target = prepared(target, overwrite, keep)
        partial = _temporary(shown, target, needed_bytes)
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(f"{shown} cannot be written: {error}. Choose another place.") from None
    try:
        yield partial
        put_in_place(partial, target, overwrite)
    except OSError as error:
        raise OutputError(explain(error, shown, target, partial)) from error
    finally:
        # After the swap it does not exist.
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def output_file(
    target: Path, magic: bytes, overwrite: bool = False, needed_bytes: int | None = None, keep: Path | None = None
) -> Iterator[Path]:
    """As output_directory, for one file: yield its path in a temporary directory. With `overwrite`, an existing file is
    replaced if it begins with `magic`. `keep` is a directory that the block reads, so `target` must not be inside of
    it.

    Raises:
        OutputError: `target` exists and may not be replaced, or the block raised an OSError.
    """
    shown = target
    try:
        target = target.resolve()
        if keep is not None and target.is_relative_to(keep.resolve()):
            raise OutputError(f"{shown} is in the source {keep}, which is not changed. Choose another place.")
        _check_file(target, magic, overwrite)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = _temporary(shown, target, needed_bytes)
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(f"{shown} cannot be written: {error}. Choose another place.") from None
    try:
        path = partial / target.name
        yield path
        sync(path)
        _check_file(target, magic, overwrite)
        path.replace(target)
        with suppress(OSError):
            sync(target.parent)
    except OSError as error:
        raise OutputError(explain(error, shown, target, partial)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_file(target: Path, magic: bytes, overwrite: bool) -> None:
    if target.is_dir():
        raise OutputError(f"{target} is a directory. Give the name of a file.")
    if not target.exists():
        return
    if not overwrite:
        raise OutputError(f"{target} exists. Choose another place, or overwrite it.")
    if not target.is_file() or not _begins_with(target, magic):
        raise OutputError(f"{target} is not a {magic.decode()} file, so it is not overwritten. Choose another place.")


def _begins_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _temporary(shown: Path, target: Path, needed_bytes: int | None) -> Path:
    """A new directory next to `target`, after checking that the disk has room."""
    free = shutil.disk_usage(target.parent).free
    if needed_bytes is not None and needed_bytes > free:
        raise OutputError(
            f"{shown} needs {_size(needed_bytes)}, and {target.parent} has {_size(free)} free. "
            f"Free some space or choose another place.{_leftovers(target)}"
        )
    partial = target.parent / f".{target.name[:64]}.partial-{os.getpid()}-{secrets.token_hex(4)}"
    _remove_dead(target)
    partial.mkdir()
    return partial


def check_storable(name: str, tensor: "torch.Tensor") -> None:
    """Refuse values that readers reject: floats that are not finite, scales that are not positive.

    Raises:
        UnsupportedError: the calibration overflowed, or the dtype cannot hold the result.
    """
    if not tensor.is_floating_point():
        return
    signed = name.endswith(("weight_scale", "deq_scale", "pre_quant_scale"))  # other tools write negative ones
    scale = name.endswith(("scale", "equalizer"))
    wrong = scale and bool((tensor == 0 if signed else tensor <= 0).any())
    if not tensor.isfinite().all() or wrong:
        raise UnsupportedError(
            f"{name} has values that are not finite{', zero or negative' if scale else ''} in "
            f"{str(tensor.dtype).removeprefix('torch.')}. The model's weights or activations exceed its range."
        )


def add_all(writer: "ShardWriter", tensors: "Iterable[tuple[str, str, torch.Tensor]]") -> dict[str, str]:
    """Check and write tensors (name, type, tensor); return their types by name. Raises: as check_storable and the
    writer."""
    types = {}
    for name, kind, tensor in tensors:
        if tensor.itemsize == 8 and tensor.is_floating_point():
            tensor = tensor.float()  # as it is computed with
        check_storable(name, tensor)
        writer.add(name, tensor.contiguous())
        types[name] = kind
    return types


def prepared(target: Path, overwrite: bool, keep: Path | None) -> Path:
    """Check the target and create its parent; return its real path.

    Raises:
        OutputError: `target` cannot be written, or may not be replaced.
    """
    shown = target
    try:
        target = target.resolve()
        if keep is not None and keep.resolve().is_relative_to(target):
            raise OutputError(f"{shown} is, or contains, the source {keep}. Choose another place.")
        _check_target(target, overwrite)
        target.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(f"{shown} cannot be written: {error}. Choose another place.") from None
    return target


def put_in_place(directory: Path, target: Path, overwrite: bool) -> None:
    """Sync the complete `directory` to disk and rename it to `target`."""
    _sync_tree(directory)
    _check_target(target, overwrite)
    _swap(directory, target)
    # The rename is done, even if the parent directory cannot be opened or synced.
    with suppress(OSError):
        sync(target.parent)


def _remove_dead(target: Path) -> None:
    """Remove the leftovers of killed runs with this target."""
    pattern = re.compile(rf"\.{re.escape(target.name[:64])}\.partial-(\d+)-[0-9a-f]{{8}}")
    for path in target.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match is not None and not Path(f"/proc/{match[1]}").exists() and Path("/proc/self").exists():
            shutil.rmtree(path, ignore_errors=True)


def _check_target(target: Path, overwrite: bool) -> None:
    if os.path.ismount(target):
        raise OutputError(f"{target} is a mount point, which cannot be replaced. Choose a directory inside it.")
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(f"{target} exists and is not a directory. Choose another place.")
    if Path.cwd().is_relative_to(target):
        raise OutputError(
            f"{target} is, or contains, the current directory. Choose one inside it, or change to another one first."
        )
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{target} exists and is not empty. Choose another place, or overwrite it.")
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
    old = target.with_name(f".{target.name[:64]}.old-{os.getpid()}-{secrets.token_hex(4)}")
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
            sync(Path(folder) / name)
        sync(Path(folder))


def sync(path: Path) -> None:
    """Sync a file or directory to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a directory.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def explain(error: OSError, shown: Path, target: Path, partial: Path, kept: bool = False) -> str:
    """Describe an OSError of the block to the user; `kept`: whether the work can be resumed."""
    left = "Run the same command again to resume." if kept else "Nothing was left behind."
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{shown} was not written: {error}. {left}"
    written = free = 0
    with suppress(OSError):
        written = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
        free = shutil.disk_usage(partial).free
    return (
        f"{shown} was not written: {error.strerror}, after {_size(written)}, with {_size(free)} free on disk. "
        f"{left} Free some space, raise the quota or choose another place.{_leftovers(target, partial)}"
    )


def _leftovers(target: Path, current: Path | None = None) -> str:
    prefixes = tuple(f".{target.name[:64]}.{kind}-" for kind in ("partial", "old"))
    with suppress(OSError):
        for path in target.parent.iterdir():
            if path.name.startswith(prefixes) and path != current:
                return f" {path} is left over from an interrupted run; remove it unless that run is still active."
    return ""


def _size(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MiB"
