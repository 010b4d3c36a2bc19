"""Decode attention for one new token: faquant, ggml, onnxruntime and the memory bound, interleaved in one run.

python benchmarks/attention_peers.py [--contexts 1024 4096 16384 32768] [--batches 1 8] [--threads N] [--json FILE]
                                     [--peers-python PYTHON]

A repetition runs over more KV caches than fit into the CPU caches, as a step does over a model's layers; times are per
KV cache. A fraction is the bytes of the int8 cache / time / the bandwidth at which the same threads read memory in the
same run, in small pages and in huge ones. "×" is the peer's time divided by faquant's with 16-bit P. Each peer runs
twice, as it is and with its memory in huge pages ("h"), and its better figure counts. "Others" is the share of the CPU
that other processes took; a row with more than 0.05 is repeated, and has a "!" if that did not help. Before the timing,
each result is compared with float attention: the rms of the error over that of the result. `make bench-peers` creates
the peers' environment.
"""

import argparse
from collections.abc import Callable
from itertools import product

import torch
from attention_decode import SHAPES, check, fill, last_tokens
from peers.client import Peer, PeerError, add_python, start_peers
from peers.inputs import attention_inputs
from timing import HUGE, SMALL, Streams, finish, quiet_seconds, shown_share, start
from torch import Tensor

from faquant.kernels.pages import Int8Pages
from faquant.kernels.scheme import P_LEVELS, AttentionScheme
from faquant.kernels.torch_backend import float_attend

PAGE_SIZE, SPREAD, ROUNDS, PAUSE = 128, 128 << 20, 7, 0.05
OURS = {"P 16": P_LEVELS["int8x2"], "P 8": P_LEVELS["uint8"]}
PEERS = {
    "ggml f16": ("ggml", {"kind": "f16"}),
    "ggml q8_0": ("ggml", {"kind": "q8_0"}),
    "onnxruntime int8": ("onnxruntime", {}),
}
MARK = " h"
"""What the name of a peer with huge pages ends with."""
MOST_ERROR = {"P 16": 0.02, "P 8": 0.03, "ggml f16": 0.03, "ggml q8_0": 0.02, "onnxruntime int8": 0.04}
"""Twice the error of rounding normal values to the format; ggml sums f16 values in f16, and onnxruntime has one
scale."""


def error_of(out: Tensor, exact: Tensor) -> float:
    return ((out - exact).square().mean() / exact.square().mean()).sqrt().item()


def measure(
    shape: tuple[int, int, int],
    context: int,
    batch: int,
    threads: int,
    peers: dict[str, Peer],
    streams: Streams,
) -> tuple[dict[str, object], dict[str, float], dict[str, float], float]:
    """The case and what went wrong, the times in seconds of the systems with correct results, the memory bandwidths,
    and the share of the CPU that other processes took."""
    heads, kv_heads, dim = shape
    q, k, v = (torch.from_numpy(x) for x in attention_inputs(shape, context, batch))
    exact = float_attend(q[:1], k, v, context - 1)
    calls: dict[str, Callable[[], object]] = {}
    errors: dict[str, float] = {}
    failures: dict[str, str] = {}
    size = batch * context * AttentionScheme(heads, kv_heads, dim).bytes_per_token
    copies = -(-SPREAD // size)
    for name, levels in OURS.items():
        scheme = AttentionScheme(heads, kv_heads, dim, p_levels=levels)
        pages = Int8Pages(scheme, batch * copies * -(-context // PAGE_SIZE), PAGE_SIZE)
        every = [last_tokens(context, some) for some in fill(pages, k, v, batch * copies).split(batch)]
        check(pages, every[-1], q)
        errors[name] = error_of(pages.attend(q, every[-1])[:1], exact)
        calls[name] = lambda pages=pages, every=every: [pages.attend(q, spans) for spans in every]  # type: ignore[misc]
    case = {"shape": shape, "context": context, "batch": batch, "copies": copies, "threads": threads}
    for name, peer in peers.items():
        try:
            _, more = PEERS[name.removesuffix(MARK)]
            peer.call("prepare", **more, **case)
            errors[name] = error_of(torch.tensor(peer.call("output")).view(exact.shape), exact)
            if errors[name] > MOST_ERROR[name.removesuffix(MARK)]:
                raise PeerError(f"its error is {errors[name]:.4f} of the result")
            calls[name] = lambda peer=peer: peer.call("run")  # type: ignore[misc]
        except PeerError as error:
            failures[name] = str(error)
            print(f"{name}: skipped: {error}")
    times, others = quiet_seconds({**calls, **streams.calls}, ROUNDS, PAUSE)
    rates = streams.take_rates(times)
    times = {name: taken / copies for name, taken in times.items()}
    return {**case, "bytes": size, "errors": errors, "failures": failures}, times, rates, others


def ratio(times: dict[str, float], name: str) -> str:
    """How many times as long as faquant the better of a peer's two processes takes."""
    best = min((some for some in (name, name + MARK) if some in times), key=lambda some: times[some], default=None)
    return f"{times[best] / times['P 16']:.1f}×{best.removeprefix(name)}" if best else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096, 16384, 32768])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    add_python(parser)
    arguments = start(parser)
    streams = Streams(arguments.threads)
    peers: dict[str, Peer] = {}
    versions: dict[str, str] = {}
    for mark in ("", MARK):
        workers = {name + mark: worker for name, (worker, _) in PEERS.items()}
        some, theirs = start_peers(workers, arguments.peers_python, huge_pages=mark == MARK)
        peers, versions = peers | some, versions | theirs
    columns = "".join(f"{name:>18}" for name in PEERS)
    print(f"Hq/Hkv/D    context  batch  GB/s: small  huge  P 16, µs  of limit: P 16       P 8    {columns}  others")
    rows: list[dict[str, object]] = []
    for shape, batch, context in product(SHAPES, arguments.batches, arguments.contexts):
        case, times, rates, others = measure(shape, context, batch, arguments.threads, peers, streams)
        rows.append({**case, **times, "memory_rates": rates, "others": others})
        size = batch * context * AttentionScheme(*shape).bytes_per_token
        shares = "  ".join("/".join(f"{size / times[kind] / rates[page]:.2f}" for page in rates) for kind in OURS)
        bandwidths = f"{rates[SMALL] / 1e9:11.1f} {rates[HUGE] / 1e9:5.1f}"
        cells = "".join(f"{ratio(times, name):>18}" for name in PEERS)
        print(
            f"{'/'.join(map(str, shape)):10} {context:8}  {batch:5}  {bandwidths}  {times['P 16'] * 1e6:8.0f}       "
            f"{shares}    {cells}  {shown_share(others)}",
            flush=True,
        )
    for peer in peers.values():
        peer.close()
    finish(arguments, rows, peers=versions)


if __name__ == "__main__":
    main()
