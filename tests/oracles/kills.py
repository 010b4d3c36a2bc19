"""Kills processes, or makes the disk fail, at any disk operation."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faquant.checkpoint.shards import ShardWriter

STRIDE = int(os.environ.get("FAQUANT_KILL_STRIDE", "11"))
"""Only every STRIDE-th step is tried; `make test-resume` tries them all."""


def at_step(number: int, act: Callable[[], None]) -> tuple[pytest.MonkeyPatch, list[int]]:
    """Call `act` before the `number`-th disk operation of this process, or halfway through it if it is a write."""
    patch = pytest.MonkeyPatch()
    count = [0]

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == number:
                act()
            return real(*args, **kwargs)

        return step

    real_write = ShardWriter._write

    def torn(self: ShardWriter, data: Any) -> None:
        count[0] += 1
        if count[0] == number:
            view = memoryview(data)
            real_write(self, view[: len(view) // 2])
            act()
        real_write(self, data)

    patch.setattr(ShardWriter, "_write", torn)
    for owner, name in (
        (os, "fsync"),
        (Path, "rename"),
        (Path, "replace"),
        (Path, "mkdir"),
        (Path, "unlink"),
        (shutil, "rmtree"),
    ):
        patch.setattr(owner, name, before(getattr(owner, name)))
    return patch, count


def killed_at(number: int, run: Callable[[], object]) -> bool:
    """Whether `run`, in a subprocess, reached this step and was killed."""
    child = os.fork()
    if child == 0:
        at_step(number, lambda: os.kill(os.getpid(), signal.SIGKILL))
        try:
            run()
        except BaseException:
            os._exit(3)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def counted(owner: object, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which each call of this function is added."""
    real, calls = getattr(owner, name), []

    def call(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return real(*args, **options)

    monkeypatch.setattr(owner, name, call)
    return calls
