"""faquant bench"""

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..checkpoint.model_config import load_config
from ..errors import UsageError
from ..kernels.device import chosen
from ..progress import progress_bar
from .console import write_json_file
from .interrupts import raise_on_signals
from .options import DeviceOption

if TYPE_CHECKING:
    from ..bench.replay import Arrival, TraceResult
    from ..engine.engine import Engine

MAX_TOKENS = 65_536
"""Maximum tokens in one cache."""
MAX_FLOAT_DEPTH = 2048
"""The float model's attention is a slow reference that handles one sequence at a time."""
SPARE = 128
INT8, BFLOAT16, FLOAT = "int8 cache", "bfloat16 cache", "float model"
FLOAT32 = "float32 cache"


def bench(
    directory: Annotated[Path, typer.Argument(help="Quantized or float directory.", metavar="OUT")],
    against: Annotated[
        Path | None, typer.Option(help="Also measure the float directory that it was made from.", metavar="MODEL")
    ] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt for prefill.")] = 2000,
    depths: Annotated[str, typer.Option(help="Tokens in the cache when decoding.")] = "16,1024,4096",
    batches: Annotated[str, typer.Option(help="Sequences that decode together.")] = "1,8,32",
    requests: Annotated[int, typer.Option(min=0, help="Requests to serve; 0: none.")] = 32,
    request_rate: Annotated[float, typer.Option(min=0, help="Requests per second; 0: all at once.")] = 0.0,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; the table shows medians.")] = 3,
    device: DeviceOption = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures as JSON, to stdout if '-'.", metavar="FILE")
    ] = None,
) -> None:
    """Measure prefill, decoding by depth and batch, and serving, with int8 and float caches."""
    max_position = load_config(directory).max_position
    chosen(device)
    if against is not None:
        load_config(against)
    chosen_depths, chosen_batches = _numbers("--depths", depths), _numbers("--batches", batches)
    from ..bench.replay import LONGEST_ANSWER, trace
    from ..bench.speed import Sequences, measure_decode, measure_prefill
    from ..engine.engine import Engine
    from ..engine.engine_config import EngineConfig
    from ..evaluation.texts import builtin_texts
    from ..kernels import isa as cpu
    from ..kernels import threads
    from ..kernels.backend import backend_for
    from ..kernels.cpu import CpuBackend
    from ..model.load import load, load_float
    from ..text.tokenizer import Tokenizer

    raise_on_signals()
    if requests and max_position <= 2 * LONGEST_ANSWER:
        raise UsageError(f"A context of {max_position} tokens is too short to serve requests; use --requests 0.")
    tokenizer = Tokenizer.from_directory(directory)  # before the weights, which take long
    backend = backend_for(device)
    model = load(directory, backend=backend)
    own = INT8 if any(model.schemes) else FLOAT if model.is_float else FLOAT32
    systems = {own: Sequences(model), BFLOAT16: Sequences(model, "bfloat16")}
    # Both engines' caches, and those of the measurements before, share a GPU's memory.
    memory = None if isinstance(backend, CpuBackend) else backend.cache_memory() // 4
    engines = {
        name: Engine(model, tokenizer, EngineConfig(kv_cache_dtype=system.kv_cache_dtype, kv_cache_memory=memory))
        for name, system in systems.items()
    }
    if against is not None:
        systems[FLOAT] = Sequences(load_float(against, backend=backend))
    texts = [tokenizer.encode(text, add_special_tokens=False) for text in builtin_texts().values()]
    text = list(islice(cycle(chain.from_iterable(texts)), max_position))
    deep = [depth for depth in chosen_depths if depth + SPARE <= max_position]
    for depth in chosen_depths:
        if depth not in deep:
            _skip(f"{depth:,} tokens", f"they exceed the context of {max_position:,} with {SPARE} more")
        for count in chosen_batches:
            if depth in deep and count * depth > MAX_TOKENS:
                _skip(f"{count} sequences of {depth:,} tokens", f"they exceed {MAX_TOKENS:,} tokens in total")
    found: dict[str, Any] = {
        "directory": str(directory),
        "cpu": cpu.cpu_name(),
        "kernels": cpu.selected_isa(),
        "threads": threads.count(),
        "backend": backend.description,
        "cache_bytes_per_token": {name: system.cache_bytes for name, system in systems.items()},
    }
    with progress_bar("reading a prompt") as update:
        total = 1 + len(deep) + bool(requests) * rounds * len(engines)
        found["prefill"] = {
            "tokens": min(prompt, max_position),
            "tokens_per_second": measure_prefill(systems, text[:prompt], rounds),
        }
        update(1, total, "decoding")
        found["decode"] = []
        for done, depth in enumerate(deep):
            fitting = [count for count in chosen_batches if count * depth <= MAX_TOKENS]
            some = {name: system for name, system in systems.items() if name != FLOAT or depth <= MAX_FLOAT_DEPTH}
            for count, rates in measure_decode(some, text[:depth], fitting, rounds).items() if fitting else ():
                found["decode"].append({"depth": depth, "sequences": count, "tokens_per_second": rates})
            update(2 + done, total)
        if requests:
            asked = trace(texts, requests, request_rate, min(2048, max_position - LONGEST_ANSWER))
            found["serve"] = _serve(engines, asked, rounds, lambda done: update(1 + len(deep) + done, total, "serving"))
    if str(json_file) != "-":
        _print(found, own)
    if json_file is not None:
        write_json_file(json_file, found)


def _skip(what: str, why: str) -> None:
    print(f"faquant: skipping {what}: {why}.", file=sys.stderr)


def _numbers(option: str, text: str) -> list[int]:
    """Parse comma-separated whole numbers. Raises: UsageError: the text is invalid."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and 0 < int(part) < 2**31 for part in parts):
        raise UsageError(f"{option} takes comma-separated whole numbers of at least 1, not {text!r:.80}.")
    return sorted({int(part) for part in parts})


def _serve(
    engines: Mapping[str, "Engine"], asked: Sequence["Arrival"], rounds: int, report: Callable[[int], None]
) -> dict[str, dict[str, float]]:
    """Serve the trace with each engine in turn; return the figures of the round with the median throughput."""
    from ..bench.replay import replay

    served: dict[str, list[TraceResult]] = {name: [] for name in engines}
    for number in range(rounds * len(engines)):
        name = list(engines)[number % len(engines)]
        engines[name].forget_prefixes()
        served[name].append(replay(engines[name], asked))
        report(number + 1)
    return {
        name: sorted(some, key=lambda one: one.tokens_per_second)[len(some) // 2].figures()
        for name, some in served.items()
    }


def _print(found: Mapping[str, Any], own: str) -> None:
    names = list(found["cache_bytes_per_token"])
    title = f"{Path(found['directory']).name}: {found['backend']}"
    table = Table(title=title, caption="tokens per second; medians")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    table.add_column(f"{names[0]} / {names[1]}", justify="right")

    def row(label: str, rates: Mapping[str, float]) -> None:
        cells = [f"{rates[name]:,.0f}" if name in rates else "" for name in names]
        both = names[0] in rates and names[1] in rates
        table.add_row(label, *cells, f"{rates[names[0]] / rates[names[1]]:.2f}×" if both else "")

    row(f"prefill {found['prefill']['tokens']:,}", found["prefill"]["tokens_per_second"])
    for case in found["decode"]:
        row(f"decode at {case['depth']:,} × {case['sequences']}", case["tokens_per_second"])
    Console().print(table)
    sizes = found["cache_bytes_per_token"]
    print("Cache, bytes per token: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()) + ".")
    if own == INT8:
        print(_pays(found["decode"], sizes[BFLOAT16] / sizes[INT8]))
    for name, figures in found.get("serve", {}).items():
        print(
            f"Serving, {name}: {figures['requests_per_second']:.2f} requests/s, {figures['tokens_per_second']:.0f} "
            f"tokens/s; first token {figures['first_token_p50']:.2f} s (p99 {figures['first_token_p99']:.2f}), further "
            f"tokens {figures['per_token_p50'] * 1e3:.0f} ms (p99 {figures['per_token_p99'] * 1e3:.0f}); "
            f"{figures['overhead']:.1%} of the time outside the model."
        )


def _pays(cases: Sequence[Mapping[str, Any]], times: float) -> str:
    """A sentence that says from which depth on the int8 cache is faster, with one sequence."""
    more = f"The int8 cache holds {times:.2f} times as many tokens in the same memory"
    rates = {case["depth"]: case["tokens_per_second"] for case in cases if case["sequences"] == 1}
    if not rates:
        return f"{more}."
    slower = [depth for depth, some in rates.items() if some[INT8] < some[BFLOAT16]]
    faster = [depth for depth in rates if depth > max(slower, default=0)]
    speed = "at no depth measured" if not faster else f"from {faster[0]:,} tokens of context on"
    return f"{more}. One sequence decoded faster with it {speed}."
