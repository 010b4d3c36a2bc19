"""Client for a peer: a process in the peers' environment that executes commands and reports times."""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faquant.kernels import memory

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parent.parent / ".venv-peers"


HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""The environment in which glibc's malloc marks its memory with madvise(MADV_HUGEPAGE)."""


class PeerError(Exception):
    """A peer failed; the message is from the peer."""


class Peer:
    """A worker process, benchmarks/peers/`worker`_worker.py; runs until it is closed.

    huge_pages: what it allocates is marked for huge pages.
    """

    def __init__(self, worker: str, python: Path, huge_pages: bool = False) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [python, HERE / f"{worker}_worker.py"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env={**os.environ, **(HUGE_PAGES if huge_pages else {})},
            )
        except OSError as error:
            raise PeerError(f"{error}; `make bench-peers` creates the peers' environment") from error

    def call(self, command: str, **arguments: object) -> Any:
        """Run a command and return its answer.

        Raises:
            PeerError: the command failed, or the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"command": command, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            said = [text.strip() for text in self._log if text.strip()]
            raise PeerError(f"exit status {self._process.wait()}: {' / '.join(said[-2:])[-300:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["result"]

    @property
    def bytes_in_huge_pages(self) -> int:
        """How much of the process's memory lies in huge pages at present."""
        return memory.bytes_in_huge_pages(self._process.pid)

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)  # so that the worker can end its child processes
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def add_python(parser: argparse.ArgumentParser) -> None:
    """Add --peers-python, the interpreter of the peers' environment."""
    parser.add_argument("--peers-python", type=Path, default=ENVIRONMENT / "bin" / "python", metavar="PYTHON")


def start_peers(
    workers: Mapping[str, str], python: Path, huge_pages: bool = False
) -> tuple[dict[str, Peer], dict[str, str]]:
    """Start the worker of each name. Returns the processes, and the versions or the reasons why they did not start,
    which are also printed."""
    peers, versions = {}, {}
    for name, worker in workers.items():
        try:
            peer = Peer(worker, python, huge_pages)
            versions[name] = peer.call("version")
            peers[name] = peer
        except PeerError as error:
            versions[name] = f"skipped: {error}"
        print(f"{name}: {versions[name]}", flush=True)
    return peers, versions
