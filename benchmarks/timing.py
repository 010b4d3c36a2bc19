"""Shared code of the benchmarks: interleaved timing on a shared machine, and the command line."""

import argparse
import json
from pathlib import Path

import torch

from faquant.bench.speed import WARM_UP as WARM_UP
from faquant.bench.speed import seconds as seconds
from faquant.kernels import isa as cpu
from faquant.kernels import threads


def start(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, with --threads and --json added, and print the configuration."""
    parser.add_argument("--threads", type=int, default=threads.count())
    parser.add_argument("--json", type=Path, help="also write the rows to this file, with times in seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    threads.set_count(arguments.threads)
    torch.manual_seed(0)
    print(f"{cpu.cpu_name()}, {cpu.selected_isa()}, {arguments.threads} threads")
    return arguments


def finish(arguments: argparse.Namespace, rows: list[dict[str, object]], **more: object) -> None:
    """Write the rows and further results to the file given on the command line."""
    if arguments.json is not None:
        machine = {"cpu": cpu.cpu_name(), "isa": cpu.selected_isa(), "threads": arguments.threads}
        arguments.json.write_text(json.dumps({**machine, **more, "rows": rows}, indent=2) + "\n", encoding="utf-8")
