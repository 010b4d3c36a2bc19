"""Decoding in vLLM: faquant's plugin beside vLLM's own bfloat16 and another tool's W8A8, and faquant's own engine.

python benchmarks/vllm_speed.py OUT --against MODEL [--w8a8 DIR] [--depths 16 2000 7900] [--sequences 1 8 32]
                                    [--rounds 3] [--json FILE]

OUT is MODEL quantized by faquant; DIR is MODEL quantized by a tool whose format vLLM reads, such as
llmcompressor_checkpoint.py --float-cache. Every system is a process of the environment that `make test-vllm` creates,
with its engine inside, all cores, and a cache of equal size; they take turns, so only one computes at a time. A step is
(the time of 33 tokens - the time of 1 token) / 32 after prompts that are in the prefix cache; medians. vLLM's own
models are compiled, which is its default. For the plugin, `model` is the part of a step within its model, and the rest
is vLLM's scheduler, sampler and bookkeeping. Its greedy tokens must be those of faquant's engine.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from faquant.kernels import isa as cpu
from faquant.kernels import threads

HERE = Path(__file__).parent
PYTHON = HERE.parent / ".venv-vllm" / "bin" / "python"
STEPS = 32
PLUGIN, OURS = "plugin", "faquant"


class System:
    """A worker process. It ends when its input does."""

    def __init__(self, directory: Path, engine: str, **limits: Any) -> None:
        self._process = subprocess.Popen(
            [PYTHON, HERE / "vllm_worker.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.tokens = self._call("start", directory=str(directory), engine=engine, **limits)

    def generate(self, depth: int, sequences: int, count: int) -> tuple[float, float, list[list[int]]]:
        """Seconds in all, and in the plugin's model; greedy tokens of each sequence."""
        total, model, tokens = self._call("generate", depth=depth, sequences=sequences, count=count)
        return total, model, tokens

    def _call(self, command: str, **given: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"command": command, **given}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"A system has ended with status {self._process.wait()}.")
        return json.loads(line)["result"]

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def steps(systems: dict[str, System], depth: int, sequences: int, rounds: int) -> dict[str, tuple[float, float]]:
    """For each system, seconds of a step, and of the plugin's model in it. Ends the run if the plugin's tokens are not
    those of faquant's engine."""
    tokens = {name: system.generate(depth, sequences, 1 + STEPS)[2] for name, system in systems.items()}
    if tokens[PLUGIN] != tokens[OURS]:
        raise SystemExit(f"The plugin's greedy tokens are not {OURS}'s: depth {depth}, {sequences} sequences.")
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, system in systems.items():
            short, long = system.generate(depth, sequences, 1), system.generate(depth, sequences, 1 + STEPS)
            taken[name].append(((long[0] - short[0]) / STEPS, (long[1] - short[1]) / STEPS))
    return {name: (median(one for one, _ in all), median(one for _, one in all)) for name, all in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--against", type=Path, required=True)
    parser.add_argument("--w8a8", type=Path)
    parser.add_argument("--depths", type=int, nargs="+", default=[16, 2000, 7900])
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=int, default=3 << 30, help="bytes of cache of each system")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    print(f"{cpu.cpu_name()}, {threads.count()} threads")
    limits = {"tokens": max(given.depths), "sequences": max(given.sequences), "cache_bytes": given.cache}
    systems = {
        PLUGIN: System(given.directory, "vllm", plugin=True, **limits),
        OURS: System(given.directory, "faquant", **limits),
        "vLLM bf16": System(given.against, "vllm", plugin=False, **limits),
    }
    if given.w8a8 is not None:
        systems["vLLM W8A8"] = System(given.w8a8, "vllm", plugin=False, **limits)
    peers = [name for name in systems if name not in (PLUGIN, OURS)]
    tokens = {name: system.tokens for name, system in systems.items()}
    print("tokens in the cache: " + ", ".join(f"{name} {count:,}" for name, count in tokens.items()))
    fitting = min(systems[name].tokens for name in peers)
    rows: list[dict[str, Any]] = []
    print(f"{'depth':>6} {'sequences':>9}  " + "  ".join(f"{name + ', ms':>14}" for name in systems), end="")
    print("   model, ms   × " + "   × ".join([f"{OURS}'s step", *peers]))
    for depth in given.depths:
        for sequences in given.sequences:
            if (depth + 128 + STEPS) * sequences > fitting:
                print(f"{depth:6,} {sequences:9}  a peer's cache is too small")
                continue
            found = steps(systems, depth, sequences, given.rounds)
            times = {name: seconds for name, (seconds, _) in found.items()}
            model = found[PLUGIN][1]
            rows.append({"depth": depth, "sequences": sequences, "seconds": times, "model": model})
            print(f"{depth:6,} {sequences:9}  " + "  ".join(f"{1e3 * each:14.2f}" for each in times.values()), end="")
            ratios = [model / times[OURS], *(times[peer] / times[PLUGIN] for peer in peers)]
            print(f"  {1e3 * model:10.2f}   " + "   ".join(f"{ratio:9.2f}" for ratio in ratios), flush=True)
    for system in systems.values():
        system.close()
    if given.json is not None:
        given.json.write_text(json.dumps({"cpu": cpu.cpu_name(), "tokens": tokens, "rows": rows}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
