"""A wheel's round trip: into an empty environment without a compiler, doctor, a request served; then quantizing.

`python tests/packaging/wheel_round_trip.py dist/*.whl` needs pip and PyPI. `make wheel` builds the wheel and runs it.
"""

import argparse
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
CHECKPOINTS = TESTS / "data" / "made_at_cad73ab"
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "cmake", "make", "ninja")
SECONDS = 300
"""For one command, or the start of a server."""


class Environment:
    """A new virtual environment, whose PATH only has its own programs."""

    def __init__(self, root: Path) -> None:
        self.root, self.bin = root / "environment", root / "environment" / "bin"
        self.work = root / "work"
        self.work.mkdir()
        self.variables = {
            "PATH": str(self.bin),
            "HOME": str(self.work),
            "LANG": "C.UTF-8",
            "CC": "/bin/false",
            "CXX": "/bin/false",
        }
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.root)], check=True)
        found = [name for name in COMPILERS if shutil.which(name, path=self.variables["PATH"])]
        expect(not found, f"the environment has {found}")

    def install(self, *what: str) -> None:
        """Install with the outer pip; nothing is built, so a dependency without a wheel fails here."""
        say(f"pip install {shlex.join(what)}")
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "-qq"]
        subprocess.run([*pip, "install", "--only-binary=:all:", *what], check=True)

    def run(self, *command: str, folder: Path | None = None, fails: bool = False) -> str:
        """Run a program of the environment; returns its output. `fails`: it is expected to fail."""
        say(shlex.join(command))
        done = subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=folder or self.work,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        expect((done.returncode != 0) == fails, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    @contextmanager
    def server(self, model: Path) -> Iterator[str]:
        """The address of `faquant serve` on `model`; ends it by SIGTERM, and expects that to succeed."""
        say(f"faquant serve {model.name} --port 0")
        log = self.work / "serve.log"
        with log.open("w") as sink:
            process = subprocess.Popen(
                [self.bin / "faquant", "serve", str(model), "--port", "0"],
                cwd=self.work,
                env=self.variables,
                stderr=sink,
            )
        try:
            yield _address(process, log)
            process.send_signal(signal.SIGTERM)
            status = process.wait(SECONDS)
        finally:
            process.kill()
            process.wait()
        expect(status == 0, f"exit status {status} after SIGTERM\n{log.read_text()}")
        say("SIGTERM: exit status 0")


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """The server's address, from the table that it prints."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        expect(process.poll() is None, f"the server ended\n{log.read_text()}")
        if match := re.search(r"http://[\d.]+:\d+", log.read_text()):
            try:
                with urllib.request.urlopen(f"{match[0]}/health", timeout=10) as answer:
                    if answer.status == 200:
                        return match[0]
            except OSError:
                pass
        time.sleep(0.1)
    raise SystemExit(f"The server did not start within {SECONDS} s:\n{log.read_text()}")


def ask(address: str) -> None:
    """One chat completion."""
    question = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        answer: dict[str, Any] = json.load(response)
    expect(isinstance(answer["choices"][0]["message"]["content"], str), str(answer))
    expect(1 <= answer["usage"]["completion_tokens"] <= 8, str(answer))
    say(f"answered with {answer['usage']['completion_tokens']} tokens")


def requires_torch(wheel: Path) -> bool:
    """Whether the wheel requires torch without any extra."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    expect("\nProvides-Extra: quantize\n" in metadata, "pip would install nothing for the extra quantize")
    return re.search(r"^Requires-Dist: torch\b[^;\n]*$", metadata, re.MULTILINE) is not None


def with_tokenizer(environment: Environment, name: str) -> Path:
    """A copy of one of the tests' tiny checkpoints, with the tests' tokenizer of bytes."""
    directory = environment.work / name
    shutil.copytree(CHECKPOINTS / name, directory)
    code = "import sys, pathlib; from oracles.tiny_tokenizer import write_tokenizer as w; w(pathlib.Path(sys.argv[1]))"
    environment.run("python", "-c", code, str(directory), folder=TESTS)
    return directory


def expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise SystemExit(f"The wheel's round trip failed: {otherwise}")


def say(text: str) -> None:
    print(f"-- {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", default="torch", help="what pip is told to install, options too")
    arguments = parser.parse_args()
    wheel, torch = arguments.wheel.resolve(), shlex.split(arguments.torch)
    with tempfile.TemporaryDirectory(prefix="faquant-wheel-") as root:
        environment = Environment(Path(root))
        core_has_torch = requires_torch(wheel)
        if core_has_torch:
            environment.install(*torch)
        environment.install(str(wheel))
        where = environment.run("python", "-c", "import faquant; print(faquant.__file__)")
        expect(Path(where.strip()).is_relative_to(environment.root), f"faquant is imported from {where}")
        environment.run("python", "-c", "import torch", fails=not core_has_torch)
        found = json.loads(environment.run("faquant", "doctor", "--json"))
        say(f"instruction sets: {', '.join(found['instruction_sets'])}; all self-tests passed")
        with environment.server(with_tokenizer(environment, "default")) as address:
            ask(address)

        if not core_has_torch:
            environment.install(*torch)
        environment.install(f"{wheel}[quantize]")
        output = environment.work / "quantized"
        environment.run("faquant", "quantize", str(with_tokenizer(environment, "float")), "-o", str(output))
        with environment.server(output) as address:
            ask(address)
    print(f"{wheel.name}, {wheel.stat().st_size:,} bytes: installed, examined, quantized with, served.")


if __name__ == "__main__":
    main()
