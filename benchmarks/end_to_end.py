"""Prefill and decode of a small model: faquant, llama.cpp and OpenVINO GenAI, interleaved in one run.

python benchmarks/end_to_end.py [--float DIR] [--int8 DIR] [--gguf FILE] [--depths 16 2000 7900] [--sequences 1 8 32]
                                [--prompt 2000] [--threads N] [--json FILE] [--peers-python PYTHON] [--peers NAME ...]

The default model is the demo model, which is downloaded, quantized, and converted to a Q8_0 GGUF file for the peers
(both kept in build/peers). "limit" is the memory bound: the time to read the int8 weights and the int8 cache at that
depth at the bandwidth measured with the same threads in the same run. Sequences do not share memory. Before the timing,
each system continues some prompts greedily, and its tokens are compared with the float model's choices; if a system
provides logits, the mean KL to the float model's is printed, too.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, cycle, islice
from pathlib import Path

import torch
from peers.client import PeerError, add_python, start_peers
from peers.gguf_file import write_q8_0
from systems import Ours, System, Theirs
from timing import finish, seconds, start
from torch import Tensor

from faquant import quantize
from faquant.checkpoint.model_config import ModelConfig
from faquant.evaluation.texts import builtin_texts
from faquant.kernels import _C
from faquant.text.tokenizer import Tokenizer

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from demo_model import fetch_demo_model

WORK = Path(__file__).parent.parent / "build" / "peers"
STREAM_BYTES, PAUSE = 512 << 20, 0.05
ROUNDS, PREFILL_ROUNDS = 5, 3
STEPS, STEPS_TOGETHER = 16, 4
"""Decoded tokens per repetition, for one sequence and for several."""
MOST_TOKENS = 65_536
"""Limit for the tokens of all sequences in a case, so that the caches of all systems fit into memory."""
MOST_FLOAT_TOKENS = 8192
"""faquant's float32 attention processes one sequence after another, in NumPy, and is omitted beyond this."""
PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS, LEAST_AGREEMENT = 8, 64, 32, 0.85
LOGITS_TOKENS = 512
INT8, FLOAT = "ours int8", "ours float32"
PEERS = {
    "llama.cpp f16": ("llama_cpp", "f16"),
    "llama.cpp q8_0": ("llama_cpp", "q8_0"),
    "OpenVINO f16": ("openvino", "f16"),
    "OpenVINO u8": ("openvino", "u8"),
}
"""Worker and KV cache type; the weights are Q8_0."""


def weight_bytes(config: ModelConfig) -> int:
    """Bytes of the matrices that a step reads, one per element."""
    kept = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim * config.hidden_size
    layer = kept + 3 * config.hidden_size * config.intermediate_size
    return config.num_layers * layer + config.vocab_size * config.hidden_size


def agreement(system: System, judge: Ours, prompts: Sequence[list[int]]) -> float:
    """The share of a system's greedy tokens that the float model would choose, too."""
    hits = 0
    for prompt in prompts:
        answer = system.greedy(prompt, ANSWER_TOKENS)
        chosen = judge.logits(prompt + answer[:-1])[len(prompt) - 1 :].argmax(-1)
        hits += int((chosen == torch.tensor(answer)).sum())
    return hits / (len(prompts) * ANSWER_TOKENS)


def divergence(exact: Tensor, logits: Tensor) -> float:
    """Mean KL of the float model's logits to these logits, in nats."""
    p, q = (x.double().log_softmax(-1) for x in (exact, logits))
    return float((p.exp() * (p - q)).sum(-1).mean())


def check(
    systems: Mapping[str, System], judge: Ours, text: list[int]
) -> tuple[dict[str, System], list[dict[str, object]]]:
    """The systems with correct results, and their accuracy."""
    prompts = [text[begin:][:PROMPT_TOKENS] for begin in range(0, len(text), len(text) // PROMPTS)][:PROMPTS]
    exact = judge.logits(text[:LOGITS_TOKENS])
    right: dict[str, System] = {}
    rows: list[dict[str, object]] = []
    for name, system in systems.items():
        try:
            same = agreement(system, judge, prompts)
            logits = system.logits(text[:LOGITS_TOKENS])
        except PeerError as error:
            print(f"{name}: skipped: {error}")
            rows.append({"system": name, "failure": str(error)})
            continue
        kl = None if logits is None else divergence(exact, logits)
        print(f"{name:16} {same:6.1%}" + ("" if kl is None else f"{kl * 1e3:12.2f}"), flush=True)
        rows.append({"system": name, "agreement": same, "kl": kl})
        if same >= LEAST_AGREEMENT:
            right[name] = system
        else:
            print(f"{name}: skipped: its answers are not the model's")
    return right, rows


def measure(
    calls: Mapping[str, Callable[[], object]], tokens: int, threads: int, rounds: int
) -> tuple[dict[str, float], float]:
    """Tokens per second of each system, and memory bandwidth in bytes per second."""
    words = torch.ones(STREAM_BYTES // 8, dtype=torch.int64)
    calls = {**calls, "stream": lambda: _C.read_all(words, threads=threads)}
    times = seconds(calls, rounds, PAUSE, warm_up=1)
    rate = STREAM_BYTES / times.pop("stream")
    return {name: tokens / taken for name, taken in times.items()}, rate


def attempt(systems: Mapping[str, System], what: Callable[[System], object]) -> dict[str, str]:
    """Run an action for each system; returns the errors of those that fail."""
    failures = {}
    for name, system in systems.items():
        try:
            what(system)
        except PeerError as error:
            failures[name] = str(error)
            print(f"{name}: skipped: {error}")
    return failures


def print_row(name: str, found: Mapping[str, float], limit: float | None) -> None:
    cells = "".join(f"{found[some]:16.0f}" if some in found else f"{'-':>16}" for some in (INT8, FLOAT, *PEERS))
    of_limit = f"{limit:8.0f} {found[INT8] / limit:7.2f}" if limit else f"{'':16}"
    best = max((rate for some, rate in found.items() if some in PEERS), default=None)
    print(f"{name:22}{cells}{of_limit}" + (f"{found[INT8] / best:11.2f}×" if best else ""), flush=True)


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the options for the models."""
    parser.add_argument("--float", type=Path, metavar="DIR", dest="source")
    parser.add_argument("--int8", type=Path, metavar="DIR")
    parser.add_argument("--gguf", type=Path, metavar="FILE")


def models(arguments: argparse.Namespace) -> tuple[Path, Path, Path]:
    """The float directory, the int8 directory and the GGUF file; created if they are not given and do not exist."""
    source = arguments.source or fetch_demo_model()
    int8 = arguments.int8 or WORK / f"{source.name}-int8"
    gguf = arguments.gguf or WORK / f"{source.name}-Q8_0.gguf"
    WORK.mkdir(parents=True, exist_ok=True)
    if not int8.exists():
        quantize(source, int8)
    if not gguf.exists():
        write_q8_0(source, gguf)
    return source, int8, gguf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_models(parser)
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--depths", type=int, nargs="+", default=[16, 2000, 7900])
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS), metavar="NAME")
    add_python(parser)
    arguments = start(parser)
    source, int8, gguf = models(arguments)
    ours, judge = Ours(int8), Ours(source)
    systems: dict[str, System] = {INT8: ours, FLOAT: judge}
    peers, versions = start_peers({name: PEERS[name][0] for name in arguments.peers}, arguments.peers_python)
    for name, peer in peers.items():
        try:
            systems[name] = Theirs(peer, gguf, PEERS[name][1], arguments.threads)
        except PeerError as error:
            versions[name] += f", skipped: {error}"
            print(f"{name}: skipped: {error}")
    config = judge.config
    tokenizer = Tokenizer.from_directory(source)
    texts = [tokenizer.encode(text, add_special_tokens=False) for text in builtin_texts().values()]
    longest = max(arguments.prompt, *arguments.depths)
    text = list(islice(cycle(chain.from_iterable(texts)), longest))

    print("\nGreedy tokens that match the float model's, KL of logits in 10⁻³ nats")
    systems, quality = check(systems, judge, text)
    header = "".join(f"{name:>16}" for name in (INT8, FLOAT, *PEERS))
    print(f"\n{'tokens/s':22}{header}   limit   of it  × best peer")
    rows: list[dict[str, object]] = []
    prompt = text[: arguments.prompt]
    found, _ = measure(
        {name: partial(system.prefill, prompt) for name, system in systems.items()},
        len(prompt),
        arguments.threads,
        PREFILL_ROUNDS,
    )
    rows.append({"prefill": len(prompt), "tokens_per_second": found})
    print_row(f"prefill {len(prompt)}", found, None)
    for depth in arguments.depths:
        for sequences in arguments.sequences:
            if sequences * depth > MOST_TOKENS:
                print(f"decode {depth} × {sequences}: skipped: more than {MOST_TOKENS} tokens in total")
                continue
            able = {
                name: system
                for name, system in systems.items()
                if name != FLOAT or sequences * depth <= MOST_FLOAT_TOKENS
            }
            failures = attempt(able, lambda system: system.prepare(text[:depth], sequences))  # noqa: B023
            steps = STEPS if sequences == 1 else STEPS_TOGETHER
            calls = {name: partial(system.decode, steps) for name, system in able.items() if name not in failures}
            found, rate = measure(calls, steps * sequences, arguments.threads, ROUNDS)
            size = weight_bytes(config) + sequences * depth * ours.cache_bytes
            limit = sequences * rate / size
            rows.append(
                {
                    "depth": depth,
                    "sequences": sequences,
                    "tokens_per_second": found,
                    "bytes": size,
                    "memory_rate": rate,
                    "limit": limit,
                    "failures": failures,
                }
            )
            print_row(f"decode at {depth} × {sequences}", found, limit)
    for peer in peers.values():
        peer.close()
    finish(arguments, rows, peers=versions, quality=quality)


if __name__ == "__main__":
    main()
