"""Output directories that take long to write: after a kill at any moment, the same command resumes."""

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..errors import OutputError
from .files import read_object
from .shards import ShardWriter, write_json
from .write import explain, prepared, put_in_place, sync


@contextmanager
def unfinished_directory(
    target: Path, identity: Mapping[str, str], overwrite: bool = False, restart: bool = False, keep: Path | None = None
) -> Iterator["Unfinished"]:
    """As output_directory, for long work: saved state survives a kill, a crash, an interrupt and a full disk, and the
    next call with the same `target` and `identity` receives it.

    Args:
        identity: what the result depends on, by names that errors show to the user.
        restart: discard the state of an earlier run.

    Raises:
        OutputError: as output_directory; another run is writing there; or the state left there has another identity.
    """
    shown = target
    try:
        path = _place(target)
        remove_remains(target)
        target = prepared(target, overwrite, keep)
        path.mkdir(exist_ok=True)
        lock = (path / "lock").open("w")
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(f"{shown} cannot be written: {error}. Choose another place.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(f"Another run is writing {shown}. Wait for it, or choose another place.") from None
        work = Unfinished(path)
        try:
            work.begin(identity, restart, shown)
            yield work
            put_in_place(work.output, target, overwrite)
        except BaseException as error:
            interrupted = isinstance(error, (OSError, MemoryError, KeyboardInterrupt, SystemExit, OtherWorkError))
            if not (interrupted and work.has_state):
                shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, OSError):
                raise OutputError(explain(error, shown, target, path, work.has_state)) from error
            raise
        shutil.rmtree(path, ignore_errors=True)


def remove_remains(target: Path) -> None:
    """Remove the files of a run that was killed after its output was complete."""
    path = _place(target)
    if (path / "state.safetensors").exists() and not (path / "output").exists():
        shutil.rmtree(path, ignore_errors=True)


def _place(target: Path) -> Path:
    return target.resolve().parent / f".{target.resolve().name[:64]}.unfinished"


class OtherWorkError(OutputError):
    """An earlier run with another identity has left its state."""


class Unfinished:
    """An unfinished output directory `output`, and the saved state of the work on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.output = path / "output"
        self._state, self._identity = path / "state.safetensors", path / "identity.json"

    @property
    def has_state(self) -> bool:
        """Whether there is saved state."""
        return self._state.exists() and self.output.exists()

    def begin(self, identity: Mapping[str, str], restart: bool, shown: Path) -> None:
        """Resume from the saved state, or start over.

        Raises:
            OtherWorkError: the saved state has another identity.
        """
        if self.has_state and not restart:
            theirs = read_object(self.path, self._identity.name)
            other = [name for name, value in identity.items() if theirs.get(name) != value]
            if other:
                raise OtherWorkError(
                    f"{shown} was started by an interrupted run with another {' and '.join(other)}. Run that command "
                    "again to finish it, or pass --restart to discard its work."
                )
            return
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
        self.output.mkdir()
        write_json(self._identity, dict(identity))

    def save(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Atomically replace the saved state by JSON values and tensors."""
        with ShardWriter(self.path, "next-state") as writer:
            writer.add("values", torch.frombuffer(bytearray(json.dumps(values).encode()), dtype=torch.uint8))
            for name, tensor in tensors.items():
                writer.add(f"tensor {name}", tensor)
        (self.path / "next-state.safetensors").replace(self._state)
        sync(self.path)

    def load(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """The last saved state, or None."""
        if not self.has_state:
            return None
        tensors = load_file(self._state)
        values = json.loads(bytes(tensors.pop("values").numpy()))
        return values, {name.removeprefix("tensor "): tensor for name, tensor in tensors.items()}
