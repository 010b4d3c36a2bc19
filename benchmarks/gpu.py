"""The kernels on an NVIDIA GPU: their bits beside the CPU's, and their times beside bfloat16's. Under 8 minutes.

pip install . torch triton       (torch with CUDA; Triton needs a C compiler)
python benchmarks/gpu.py [--quick] [--sections bits decode …] [--json FILE] [--markdown FILE]

Prints a report in Markdown at the end, and writes what is known after each section. A section runs in processes of its
own and has a time of its own: one that fails or hangs does not stop the others. `--quick` takes about 2 minutes.
`--tiny` runs everything in Triton's interpreter on the CPU, to test this program; its times mean nothing.

Times are medians of CUDA graphs, with inputs in turn that do not fit into the L2 cache. The unit of bandwidth is a copy
within the device's memory: bytes read and bytes written, per second.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpu_parts.report import markdown
from gpu_parts.results import WARM_UP, Results, read

SECTIONS = {
    "full": {"bits": 160, "decode": 100, "prefill": 30, "linears": 60, "head": 20, "step": 80},
    "quick": {"bits": 45, "decode": 20, "prefill": 10, "linears": 15, "head": 10, "step": 15},
    "tiny": {"bits": 300, "decode": 60, "prefill": 60, "linears": 60, "head": 60, "step": 60},
}
"""Seconds of each, imports included. What one does not need, the next one may use."""
GRACE = {"full": 15, "quick": 5, "tiny": 60}
"""Seconds that a section may take longer, to end what it has begun, before it is killed."""
CALLS = {
    "bits-attention": "checks:attention",
    "bits-linears": "checks:linears",
    "bits-engine": "checks:engine",
    "decode": "attention:decode",
    "prefill": "attention:prefill",
    "linears": "linears:linears",
    "head": "linears:head",
    "step": "step:steps",
}
"""For each part, a module of gpu_parts and a function. Only a part imports its module: it needs torch and triton."""
DEAD, MOST_STARTS = 3, 8
"""The exit status of a process that must be started again, and how often it is started."""
DEFECT = 2
"""The exit status if bits differ, or nothing was found."""


def run_parts(names: list[str], results: Results, size: str) -> None:
    """Run parts in this process. What one raises becomes a note."""
    from gpu_parts.timing import is_dead, reason

    def end_if_dead() -> None:
        if is_dead():
            results.note("The GPU's context is lost, and a new process goes on after this row.")
            raise SystemExit(DEAD)

    results.after_row = end_if_dead
    # What exists now is not searched for garbage before each graph.
    gc.freeze()
    for name in names:
        begin = time.time()
        try:
            _describe(results)
            module, _, function = CALLS[name].partition(":")
            getattr(import_module(f"gpu_parts.{module}"), function)(results, size)
        except Exception as error:
            traceback.print_exc()
            results.note(f"{name} failed: {reason(error)}")
        print(f"-- {name}: {time.time() - begin:.0f} s", flush=True)


def _describe(results: Results) -> None:
    import torch
    from gpu_parts.timing import device

    from faquant.kernels.device import driver_version

    if device().type != "cuda":
        return
    properties = torch.cuda.get_device_properties(0)
    results.fact(
        card=properties.name,
        capability=f"{properties.major}.{properties.minor}",
        multiprocessors=properties.multi_processor_count,
        memory=f"{properties.total_memory / 2**30:.1f} GiB",
        driver=driver_version(),
        CUDA=torch.version.cuda,
    )


def _clocks() -> str:
    """The card's clocks and power limit, if nvidia-smi is there."""
    query = "clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


@dataclass
class Process:
    """Parts that run in a process of their own.

    warm_up: whether it only compiles kernels, whose binaries Triton keeps on the disk.
    """

    names: list[str]
    warm_up: bool = False

    def start(self, file: Path, deadline: float, size: str) -> None:
        command = [sys.executable, __file__, "--parts", *self.names, "--size", size, "--deadline", str(deadline)]
        command += ["--file", f"{file}.warm-up" if self.warm_up else str(file)]
        environment = dict(os.environ)
        if size == "tiny":
            environment["TRITON_INTERPRET"] = "1"
        if self.warm_up:
            environment[WARM_UP] = "1"
        output = subprocess.DEVNULL if self.warm_up else None
        self._start = partial(subprocess.Popen, command, env=environment, stdout=output, stderr=output)
        self._process = self._start()

    def end(self, results: Results, limit: float) -> None:
        """Wait until the process ends, or kill it; note how it ended if not well."""
        status: int | None = DEAD
        try:
            for _ in range(MOST_STARTS):
                status = self._process.wait(max(1.0, limit - time.time()))
                if status != DEAD:
                    break
                self._process = self._start()
        except subprocess.TimeoutExpired:
            status = None
        self.kill()
        if status != 0 and not self.warm_up:
            how = "was killed because it took too long" if status is None else f"ended with status {status}"
            results.note(f"The process of {', '.join(self.names)} {how}.")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def phases(sections: list[str], size: str) -> list[tuple[float, list[Process]]]:
    """What runs together, and for how many seconds.

    While bits are checked, which needs no quiet GPU, other processes compile the kernels that will be timed.
    """
    bits = [name for name in CALLS if name.startswith("bits") and "bits" in sections]
    timed = [name for name in sections if name != "bits"]
    times = SECTIONS[size]
    if size == "tiny":  # imports take long on a CPU, and a test has little time
        return [(sum(times.values()), [Process([*bits, *timed])])]
    first = [Process([name]) for name in bits] + [Process([name], warm_up=True) for name in timed]
    return [(times["bits"], first), *((times[name], [Process([name])]) for name in timed)]


def _write(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown is not None:
        arguments.markdown.write_text(markdown(found), encoding="utf-8")


def supervise(arguments: argparse.Namespace, size: str, file: Path) -> dict[str, Any]:
    """Run all phases, and return what they found."""
    begin = deadline = time.time()
    grace = GRACE[size]
    end = begin + sum(SECTIONS[size].values()) + grace
    results = Results(file, end)
    facts = {name: _version(name) for name in ("faquant", "torch", "triton")}
    clocks = "clocks (SM, greatest SM, memory), power limit, temperature"
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    results.fact(date=date, **facts, **{f"{clocks}, before": _clocks()})
    for seconds, processes in phases(arguments.sections, size):
        deadline = min(deadline + seconds, end - grace)
        limit = min(deadline + grace, end)
        if time.time() > deadline:
            results.note(f"No time was left for {', '.join(name for each in processes for name in each.names)}.")
            continue
        started: list[Process] = []
        try:
            for each in processes:
                each.start(file, deadline, size)
                started.append(each)
            for each in processes:
                each.end(results, limit)
        finally:
            for each in started:
                each.kill()
        _write(arguments, read(file))
    results.fact(**{f"{clocks}, after": _clocks(), "seconds": round(time.time() - begin)})
    return read(file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="fewer shapes; about 2 minutes")
    size.add_argument("--tiny", action="store_true", help="test this program in Triton's interpreter, without a GPU")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS["full"], default=list(SECTIONS["full"]))
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--markdown", type=Path, help="write the report to this file")
    for name in ("--parts", "--file", "--deadline", "--size"):  # for processes that this program starts
        parser.add_argument(name, nargs="+" if name == "--parts" else None, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.parts:
        run_parts(arguments.parts, Results(Path(arguments.file), float(arguments.deadline)), arguments.size)
        return
    size = "tiny" if arguments.tiny else "quick" if arguments.quick else "full"
    if size != "tiny":
        from faquant.kernels.device import why_not

        if reason := why_not():
            raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.jsonl"
        try:
            found = supervise(arguments, size, file)
        except KeyboardInterrupt:
            found = read(file)
        _write(arguments, found)
    print("\n" + markdown(found))
    checks = found["tables"].get("bits", [])
    if not found["tables"] or any(row["result"] != "same" for row in checks):
        raise SystemExit(DEFECT)


if __name__ == "__main__":
    main()
