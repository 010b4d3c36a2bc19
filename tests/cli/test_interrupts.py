"""Ctrl-C ends a command at any moment, with status 130 and a message, and without a traceback."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from oracles.tiny_models import tiny_model

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
SCRIPT, FUNCTION = re.findall(r'^\[project.scripts\]\nfaquant = "(.+):(.+)"$', PYPROJECT.read_text(), re.MULTILINE)[0]
STARTS = {
    "script": ["-c", f"import sys; from {SCRIPT} import {FUNCTION}; sys.exit({FUNCTION}())"],
    "module": ["-m", "faquant"],
}
SIGNAL_AT_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["MODULE"]:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), int(os.environ["SIGNAL"]))
                signal.getsignal(signal.SIGINT)  # Python runs its handler before this
            except BaseException:
                if "RAISE" in os.environ:
                    raise

sys.meta_path.insert(0, Finder())
"""
"""Exceptions are lost there, as in libraries that catch all exceptions during an import, and in torch's C++."""
AT_WORK = """
import os, signal
from faquant.cli.start import main
from faquant.quantization import pipeline

real = pipeline._save

def save(*args):
    real(*args)
    os.kill(os.getpid(), int(os.environ["SIGNAL"]))

pipeline._save = save
main()
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "float"
    tiny_model("smollm", directory)
    (directory.parent / "own.jsonl").write_text('{"token_ids": [1, 2, 3]}\n')
    return directory


def quantize(source: Path, out: Path) -> list[str]:
    calibration = source.parent / "own.jsonl"
    return ["quantize", str(source), "-o", str(out), "--calibration", str(calibration), "--no-evaluate"]


def signalled(
    folder: Path, program: list[str], number: int, before: Callable[[], object] | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program that sends itself the signal, with SIGNAL_AT_IMPORT if MODULE is among the variables."""
    (folder / "sitecustomize.py").write_text(SIGNAL_AT_IMPORT if "MODULE" in variables else "")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *program],
        env={**os.environ, "PYTHONPATH": path, "SIGNAL": str(int(number)), **variables},
        capture_output=True,
        text=True,
        timeout=100,
        preexec_fn=before,
        check=False,
    )


@pytest.mark.parametrize("how", STARTS)
@pytest.mark.parametrize("module", ["faquant.cli.main", "typer", "numpy", "faquant.model.inspection"])
def test_an_interrupt_during_an_import(how: str, module: str, source: Path, tmp_path: Path) -> None:
    ended = signalled(tmp_path, [*STARTS[how], "inspect", str(source)], signal.SIGINT, MODULE=module)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "faquant: Interrupted.\n")


@pytest.mark.parametrize("command", ["quantize", "evaluate", "generate", "serve", "bench", "convert"])
def test_every_command_can_be_interrupted_while_numpy_is_imported(command: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = {
        "quantize": ["-o", str(out)],
        "evaluate": ["--against", str(source)],
        "generate": ["Hello"],
        "serve": ["--port", "0"],
        "convert": ["--to", "mindie", "-o", str(out)],
    }
    program = [*STARTS["module"], command, str(source), *more.get(command, [])]
    ended = signalled(tmp_path, program, signal.SIGINT, MODULE="numpy")
    assert (ended.returncode, ended.stderr) == (130, "faquant: Interrupted.\n")
    assert not out.exists()


def test_a_termination_during_an_import(source: Path, tmp_path: Path) -> None:
    ended = signalled(tmp_path, [*STARTS["module"], "inspect", str(source)], signal.SIGTERM, MODULE="numpy")
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + signal.SIGTERM, "", "")


@pytest.mark.parametrize(
    ("number", "module"),
    [(signal.SIGINT, "numpy"), (signal.SIGHUP, "numpy"), (signal.SIGHUP, "faquant.model.load")],
)
def test_signals_that_the_caller_ignores_are_ignored(number: int, module: str, source: Path, tmp_path: Path) -> None:
    """nohup ignores SIGHUP, and shells ignore SIGINT for background jobs."""
    ended = signalled(
        tmp_path,
        [*STARTS["module"], *quantize(source, tmp_path / "out")],
        number,
        before=lambda: signal.signal(number, signal.SIG_IGN),
        MODULE=module,
        RAISE="1",
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out").exists()


@pytest.mark.parametrize(("number", "message"), [(signal.SIGINT, "faquant: Interrupted.\n"), (signal.SIGTERM, "")])
def test_interrupted_work_can_be_resumed(number: int, message: str, source: Path, tmp_path: Path) -> None:
    arguments = quantize(source, tmp_path / "out")
    ended = signalled(tmp_path, ["-c", AT_WORK, *arguments], number)
    assert (ended.returncode, ended.stderr) == (128 + number, message)
    assert (tmp_path / ".out.unfinished" / "state.safetensors").exists()
    assert signalled(tmp_path, [*STARTS["module"], *arguments], number).returncode == 0
    assert (tmp_path / "out" / "config.json").exists()
    assert not (tmp_path / ".out.unfinished").exists()
