"""The kernels on an NVIDIA GPU: their bits beside the CPU's, and their times beside bfloat16's. Under 8 minutes.

pip install . 'torch' 'triton'          (torch with CUDA, Linux)
python benchmarks/gpu.py [--quick] [--sections bits decode …] [--json FILE] [--markdown FILE]

Prints a report in Markdown at the end, and writes what is known after each section. A section runs in a process of its
own and has a time of its own: one that fails or hangs does not stop the others. `--quick` takes about 2 minutes.
`--tiny` runs everything in Triton's interpreter on the CPU, to test this program; its times mean nothing.

Times are medians of CUDA graphs, with inputs in turn that do not fit into the L2 cache. The unit of bandwidth is a copy
within the device's memory: bytes read and bytes written, per second.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import datetime, timezone
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpu_parts.report import markdown
from gpu_parts.results import Results, read

SECTIONS = {"bits": 120, "decode": 110, "prefill": 35, "linears": 75, "head": 20, "step": 90}
"""Seconds of each. What one does not need, the next one may use."""
CALLS = {
    "bits": "checks:bits",
    "decode": "attention:decode",
    "prefill": "attention:prefill",
    "linears": "linears:linears",
    "head": "linears:head",
    "step": "step:steps",
}
"""Module of gpu_parts and function. Each is imported by its section only: they need torch and triton."""
QUICK = 0.27
GRACE = 20.0
"""Seconds that a section may take longer, to end what it has begun, before it is killed."""
MOST_SECONDS = 470.0
DEFECT = 2
"""The exit status if bits differ, or nothing was found."""


def run_sections(names: list[str], results: Results, size: str) -> None:
    """Run sections in this process. What one raises becomes a note."""
    from gpu_parts.timing import device, reason

    if device().type == "cuda":
        _describe(results)
    for name in names:
        print(f"-- {name}", flush=True)
        try:
            module, _, function = CALLS[name].partition(":")
            getattr(import_module(f"gpu_parts.{module}"), function)(results, size)
        except Exception as error:
            traceback.print_exc()
            results.note(f"Section {name} failed: {reason(error)}")


def _describe(results: Results) -> None:
    import torch

    from faquant.kernels.cuda.device import driver_version

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


def _run_in_process(names: list[str], file: Path, deadline: float, limit: float, arguments: argparse.Namespace) -> None:
    """Run sections in a new process, and note how it ended if not well."""
    command = [sys.executable, __file__, "--sections", *names, "--part-of", str(file), "--deadline", str(deadline)]
    command += [f"--{size}" for size in ("tiny", "quick") if getattr(arguments, size)]
    environment = dict(os.environ, TRITON_INTERPRET="1") if arguments.tiny else None
    results = Results(file, deadline)
    try:
        status = subprocess.run(command, env=environment, timeout=max(1.0, limit - time.time()), check=False).returncode
        if status:
            results.note(f"The process of {', '.join(names)} ended with status {status}.")
    except subprocess.TimeoutExpired:
        results.note(f"The process of {', '.join(names)} was killed because it took too long.")


def _write(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown is not None:
        arguments.markdown.write_text(markdown(found), encoding="utf-8")


def supervise(arguments: argparse.Namespace, file: Path) -> dict[str, Any]:
    """Run all sections, each in a process, and return what they found."""
    begin = time.time()
    scale = QUICK if arguments.quick else 1.0
    end = begin + MOST_SECONDS * scale
    Results(file, end).fact(
        **{
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "faquant": _version("faquant"),
            "torch": _version("torch"),
            "triton": _version("triton"),
            "clocks (SM, greatest SM, memory), power limit, temperature before": _clocks(),
        }
    )
    # Imports take long on a CPU, so that a test has one process for all sections.
    groups = [arguments.sections] if arguments.tiny else [[name] for name in arguments.sections]
    deadline = begin
    for number, names in enumerate(groups):
        deadline += scale * sum(SECTIONS[name] for name in names)
        # The last sections must not lose their time to the grace of earlier ones.
        limit = min(deadline + GRACE * scale, end)
        if time.time() < limit:
            _run_in_process(names, file, min(deadline, end - 15 * scale), limit, arguments)
        else:
            Results(file, end).note(f"No time was left for {', '.join(names)}.")
        if number == len(groups) - 1:
            Results(file, end).fact(**{"clocks after": _clocks(), "seconds": round(time.time() - begin)})
        _write(arguments, read(file))
    return read(file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="fewer shapes; about 2 minutes")
    size.add_argument("--tiny", action="store_true", help="test this program in Triton's interpreter, without a GPU")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--markdown", type=Path, help="write the report to this file")
    parser.add_argument("--part-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    arguments = _parser().parse_args()
    size = "tiny" if arguments.tiny else "quick" if arguments.quick else "full"
    if arguments.part_of is not None:
        run_sections(arguments.sections, Results(arguments.part_of, arguments.deadline), size)
        return
    if not arguments.tiny:
        from faquant.kernels.cuda.device import why_not

        if reason := why_not():
            raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.jsonl"
        try:
            found = supervise(arguments, file)
        except KeyboardInterrupt:
            found = read(file)
        _write(arguments, found)
    print("\n" + markdown(found))
    checks = found["tables"].get("bits", [])
    if not found["tables"] or any(row["result"] != "same" for row in checks):
        raise SystemExit(DEFECT)


if __name__ == "__main__":
    main()
