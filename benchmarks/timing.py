"""What the benchmarks of kernels share: timing calls beside each other on a shared machine, and their command line."""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from statistics import median

import torch

from faquant.kernels import cpu

WARM_UP = 2


def seconds(
    calls: Mapping[str, Callable[[], object]], rounds: int, pause: float = 0.0, warm_up: int = WARM_UP
) -> dict[str, float]:
    """Median time of each; every round makes all calls in a random order, so that none always comes behind the same
    one: what is timed behind a read of all memory finds nothing in the caches.

    A call that returns a float says so how long it took itself. `pause` seconds in front of each call let the threads
    of the one before it fall asleep, where they spin for a while first.
    """
    names, order = list(calls), Random(0)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + warm_up):
        for name in order.sample(names, len(names)):
            time.sleep(pause)
            begin = time.perf_counter()
            own = calls[name]()
            taken = time.perf_counter() - begin
            if number >= warm_up:
                times[name].append(own if isinstance(own, float) else taken)
    return {name: median(some) for name, some in times.items()}


def start(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, with --threads and --json added, and say what runs."""
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the rows, times in seconds, there as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"{cpu.cpu_name()}, {cpu.selected_isa()}, {arguments.threads} threads")
    return arguments


def finish(arguments: argparse.Namespace, rows: list[dict[str, object]], **more: object) -> None:
    """Write the rows, and what else there is to say, where the command line says."""
    if arguments.json is not None:
        machine = {"cpu": cpu.cpu_name(), "isa": cpu.selected_isa(), "threads": arguments.threads}
        arguments.json.write_text(json.dumps({**machine, **more, "rows": rows}, indent=2) + "\n", encoding="utf-8")
