"""Prefill and decode of a small model: faquant beside llama.cpp and OpenVINO GenAI, as a table in Markdown.

python benchmarks/end_to_end.py [--quick] [--prompts 500 1000 …] [--depths 16 2000 7900] [--sequences 1 2 4 …]
                                [--float DIR] [--int8 DIR] [--gguf FILE] [--patience SECONDS] [--threads N]
                                [--json FILE] [--peers NAME ...] [--peers-python PYTHON]

The default model is the demo model, which is downloaded, quantized, and converted to a Q8_0 GGUF file for the peers
(both kept in build/peers). Each peer runs twice, as it is and with its memory in huge pages, alone with faquant: calls
of both and reads of memory are interleaved. A peer's column has the better of its two figures, "× best peer" the
smallest ratio of the two systems' speeds within a measurement, and faquant's column the median of its measurements.

"Of limit" is faquant's share of the memory bound: the time to read the int8 weights and the int8 cache at the bandwidth
of the same run, with memory in small pages and in huge ones. "Others" is the share of the CPU that other processes
took, of a row's measurements the highest. A measurement with more than 0.05 is repeated; if no try was quieter, the row
has a "!". A peer that takes longer than --patience to read its prompts gets no longer ones. Sequences do not share
memory. Before the timing, each system continues some prompts greedily, and its tokens are compared with the float
model's choices; if a system provides logits, the mean KL to the float model's is printed, too.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain, cycle, islice, product
from pathlib import Path
from statistics import median

import torch
from peers.client import PeerError, add_python, start_peers
from peers.gguf_file import write_q8_0
from side_by_side import OURS, PEERS, Bench, weight_bytes
from systems import Ours, System, Theirs
from timing import HUGE, SMALL, finish, shown_share, start
from torch import Tensor

from faquant import quantize
from faquant.evaluation.texts import builtin_texts
from faquant.text.tokenizer import Tokenizer

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from demo_model import fetch_demo_model

WORK = Path(__file__).parent.parent / "build" / "peers"
PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS, LEAST_AGREEMENT = 8, 64, 32, 0.85
LOGITS_TOKENS = 512
QUICK = {"prompts": [500, 2000], "depths": [16, 2000], "sequences": [1, 8], "patience": 30.0}


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


def check(name: str, system: System, judge: Ours, text: list[int]) -> dict[str, object]:
    """The accuracy of a system.

    Raises:
        PeerError: the system fails, or its answers are not the model's.
    """
    prompts = [text[begin:][:PROMPT_TOKENS] for begin in range(0, len(text), len(text) // PROMPTS)][:PROMPTS]
    same = agreement(system, judge, prompts)
    logits = system.logits(text[:LOGITS_TOKENS])
    kl = None if logits is None else divergence(judge.logits(text[:LOGITS_TOKENS]), logits)
    shown = "" if kl is None else f", KL {kl * 1e3:.2f}·10⁻³"
    print(f"{name}: {same:.1%} of the greedy tokens are the float model's{shown}", flush=True)
    if same < LEAST_AGREEMENT:
        raise PeerError("its answers are not the model's")
    return {"system": name, "agreement": same, "kl": kl}


def print_table(bench: Bench, names: Sequence[str]) -> None:
    """The table in Markdown."""
    heads = ["", OURS, *names, "of limit, small pages", "of limit, huge pages", "× best peer", "others"]
    print(f"\nTokens/s; h: with huge pages.\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    config = bench.ours.config
    for work in bench.works:
        some = [one for one in bench.measurements if one.work == work]
        if not some:
            continue
        cells = [str(work), f"{median(one.rates[OURS] for one in some):,.0f}"]
        for name in names:
            best = max((one for one in some if one.peer == name), key=lambda one: one.rates[name], default=None)
            cells.append(f"{best.rates[name]:,.0f}{' h' * best.huge_pages}" if best else "")
        for kind in (SMALL, HUGE):
            each = weight_bytes(config) / max(1, work.sequences) + work.length * bench.ours.cache_bytes
            share = median(one.rates[OURS] * each / one.memory_rates[kind] for one in some)
            cells.append(f"{share:.2f}" if work.sequences else "")
        ratio = min(one.ratio for one in some)
        cells += ["" if ratio == float("inf") else f"{ratio:.2f}×", shown_share(max(one.others for one in some))]
        print(f"| {' | '.join(cells)} |")


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
    parser.add_argument("--quick", action="store_true", help=f"a small selection: {QUICK}")
    parser.add_argument("--prompts", type=int, nargs="*", default=[500, 1000, 2000, 4000, 8000])
    parser.add_argument("--depths", type=int, nargs="*", default=[16, 2000, 7900])
    parser.add_argument("--sequences", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--patience", type=float, default=90.0, metavar="SECONDS")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), metavar="NAME")
    add_python(parser)
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK)
    arguments = start(parser)
    source, int8, gguf = models(arguments)
    ours, judge = Ours(int8), Ours(source)
    tokenizer = Tokenizer.from_directory(source)
    texts = [tokenizer.encode(text, add_special_tokens=False) for text in builtin_texts().values()]
    longest = max(LOGITS_TOKENS, *arguments.prompts, *arguments.depths)
    text = list(islice(cycle(chain.from_iterable(texts)), longest))
    bench = Bench(ours, text, arguments)
    quality = [check(OURS, ours, judge, text)]
    versions: dict[str, str] = {}
    huge_bytes: dict[str, int] = {}

    def save() -> None:
        rows: list[dict[str, object]] = [{**asdict(one), "ratio": one.ratio} for one in bench.measurements]
        more = {"peers": versions, "quality": quality, "failures": bench.failures, "bytes_in_huge_pages": huge_bytes}
        finish(arguments, rows, **more)

    for name, huge_pages in product(arguments.peers, (False, True)):
        worker, kv, _ = PEERS[name]
        shown = f"{name}{', huge pages' * huge_pages}"
        peers, version = start_peers({name: worker}, arguments.peers_python, huge_pages)
        versions |= {shown: version[name]}
        for peer in peers.values():
            try:
                system = Theirs(peer, gguf, kv, arguments.threads, huge_pages)
                quality.append(check(shown, system, judge, text))
                bench.run(name, system, huge_pages)
                huge_bytes[shown] = peer.bytes_in_huge_pages
                print(f"{shown}: {huge_bytes[shown] >> 20} MiB of it in huge pages", flush=True)
            except PeerError as error:
                versions[shown] += f", skipped: {error}"
                print(f"{shown}: skipped: {error}")
            peer.close()
        save()
    bench.run(None, None, huge_pages=False)
    save()
    print_table(bench, arguments.peers)


if __name__ == "__main__":
    main()
