"""Seconds of quantizing with the evaluation at its end, by phase, for one or two checkouts in alternating processes.

    python benchmarks/quantizing.py MODEL [--recipe default] [--rounds 1] [--old CHECKOUT]

MODEL is a float directory. CHECKOUT is another checkout of faquant with its own .venv, which is measured before this
one in each round. CPU seconds are user and system time of all threads; on a shared machine they say more than wall
time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RUN = """
import json, os, sys, time
from faquant import evaluate, quantize
def now():
    times = os.times()
    return [time.monotonic(), times.user + times.system]
marks = {"start": now()}
def mark(phase):
    def progress(done, total):
        marks.setdefault(f"{phase} {done}", now())
    return progress
source, out, recipe = sys.argv[1:]
tokens = quantize(source, out, recipe, progress=mark("quantize"))
marks["quantized"] = now()
layers = json.load(open(f"{out}/config.json"))["num_hidden_layers"]
report = evaluate(out, source, progress=mark("evaluate"), quick=True)
marks["end"] = now()
edges = ["start", "quantize 0", f"quantize {layers}", "quantized", f"evaluate {layers}", "end"]
names = ["read", "layers", "head and files", "evaluate: layers", "evaluate: scores"]
phases = {
    name: [b - a for a, b in zip(marks[first], marks[last])] for name, first, last in zip(names, edges, edges[1:])
}
kl = {text: {name: found.kl_mean for name, found in row.items()} for text, row in report.texts.items()}
print(json.dumps({"tokens": tokens, "phases": phases, "kl": kl}))
"""


def measured(python: Path, model: Path, recipe: str) -> dict[str, Any]:
    """Wall and CPU seconds by phase, in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(python), "-c", RUN, str(model), str(Path(folder, "out")), recipe]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    from faquant.kernels import isa as cpu

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--old", type=Path)
    arguments = parser.parse_args()
    checkouts = {} if arguments.old is None else {"old": arguments.old / ".venv" / "bin" / "python"}
    checkouts["this"] = Path(sys.executable)
    print(f"{cpu.cpu_name()}, {os.cpu_count()} CPUs, recipe {arguments.recipe}")
    for _ in range(arguments.rounds):
        for name, python in checkouts.items():
            found = measured(python, arguments.model, arguments.recipe)
            phases = found["phases"]
            phases["all"] = [sum(seconds) for seconds in zip(*phases.values(), strict=True)]
            for phase, (wall, used) in phases.items():
                print(f"{name:>5}  {phase:<16}  {wall:7.1f} s wall  {used:7.1f} s CPU")
            for text, row in found["kl"].items():
                print(f"{name:>5}  {text}: " + ", ".join(f"{part} {1e3 * kl:.3f}" for part, kl in row.items()))


if __name__ == "__main__":
    main()
