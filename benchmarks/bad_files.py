"""Time from the command to the error for damaged model directories: CPU seconds and seconds, per command.

    python benchmarks/bad_files.py MODEL

MODEL is a directory of a model with one file of weights, float or quantized; it is copied for each fault.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

COMMANDS = {
    "inspect": ["inspect", "{}"],
    "generate": ["generate", "{}", "Hello", "-n", "1"],
    "quantize": ["quantize", "{}", "-o", "{}.out"],
    "evaluate": ["evaluate", "{}", "--against", "{}"],
}
HEADER = 8


def weights(directory: Path) -> Path:
    return next(directory.glob("*.safetensors"))


def tensor_places(path: Path) -> dict[str, tuple[int, int]]:
    """The bytes of each tensor in the file, in order."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEADER), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    start = HEADER + length
    return {name: tuple(start + at for at in entry["data_offsets"]) for name, entry in header.items()}


def set_nan(directory: Path, which: str) -> None:
    """Write a NaN into the last value of the last tensor whose name has `which` in it and that is float."""
    path = weights(directory)
    with safe_open(path, framework="np") as file:
        names = [name for name in tensor_places(path) if which in name]
        dtypes = {name: str(file.get_slice(name).get_dtype()) for name in names}
    name = [name for name in names if dtypes[name] in ("F32", "BF16", "F16")][-1]
    _, end = tensor_places(path)[name]
    nan = {"F32": np.float32(np.nan).tobytes(), "BF16": b"\xc0\x7f", "F16": b"\x00\x7e"}[dtypes[name]]
    with path.open("r+b") as file:
        file.seek(end - len(nan))
        file.write(nan)


def truncate(directory: Path, name: str | None = None) -> None:
    path = weights(directory) if name is None else directory / name
    os.truncate(path, path.stat().st_size // 2)


def rename_tensor(directory: Path, old: str, new: str) -> None:
    path = weights(directory)
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(HEADER), "little")
        text = file.read(length)
        file.seek(HEADER)
        file.write(text.replace(f'"{old}"'.encode(), f'"{new}"'.encode())[:length].ljust(length))


def change_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


NORM = "model.layers.0.input_layernorm.weight"
CASES: dict[str, Callable[[Path], None]] = {
    "weights truncated": truncate,
    "weights missing": lambda directory: weights(directory).unlink(),
    "a tensor with another name": lambda directory: rename_tensor(directory, NORM, NORM.replace("input", "inpux")),
    "config.json with another size": lambda directory: change_config(directory, intermediate_size=1234),
    "config.json truncated": lambda directory: truncate(directory, "config.json"),
    "tokenizer.json truncated": lambda directory: truncate(directory, "tokenizer.json"),
    "NaN in the last norm": lambda directory: set_nan(directory, "model.norm"),
    "NaN in the embedding": lambda directory: set_nan(directory, "embed_tokens"),
    "NaN in a projection or its scale": lambda directory: set_nan(directory, "mlp.up_proj"),
}


def main() -> None:
    model = Path(sys.argv[1])
    table = Table("fault", *(f"{name}: CPU s (s)" for name in COMMANDS), "error")
    for what, damage in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / "model"
            shutil.copytree(model, directory)
            damage(directory)
            cells, said = [], ""
            for arguments in COMMANDS.values():
                command = [part.format(directory) for part in arguments]
                before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
                status, said = run(command)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                cells.append(f"{cpu:.2f} ({time.monotonic() - started:.2f})" + ("" if status else " no error"))
            table.add_row(what, *cells, said.replace(str(directory), "MODEL")[:90])
    Console(width=200).print(table)


def run(command: list[str]) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "faquant", *command], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""


if __name__ == "__main__":
    main()
