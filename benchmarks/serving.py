"""A trace of requests: faquant's engine and server, OpenVINO GenAI's continuous batching and llama.cpp's server.

python benchmarks/serving.py [--float DIR] [--int8 DIR] [--gguf FILE] [--requests 32] [--rates 0 1] [--rounds 3]
                             [--threads N] [--json FILE] [--peers-python PYTHON]

A rate is the number of requests per second; 0: all at once. Each round has its own prompts, the same for all systems; a
quarter of them share a prefix. All answers are greedy and have the requested length. "first" is the time to the first
token, "each" the time per further token, both as p50 and p99 over the requests of the median round. The servers of
llama.cpp and faquant are accessed over HTTP, the others by calls. The models are those of end_to_end.py.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from end_to_end import add_models, models
from peers.client import Peer, PeerError, add_python, start_peers
from timing import finish, start

from faquant.bench.replay import Arrival, TraceResult, replay, trace
from faquant.engine.engine import Engine
from faquant.engine.engine_config import EngineConfig
from faquant.evaluation.texts import builtin_texts
from faquant.model.load import load
from faquant.text.tokenizer import Tokenizer

PEERS = {
    "OpenVINO f16": ("openvino", "f16", {"serving": True}),
    "OpenVINO u8": ("openvino", "u8", {"serving": True}),
    "llama-server f16": ("llama_server", "f16", {}),
    "llama-server q8_0": ("llama_server", "q8_0", {}),
}
"""Worker, KV cache type, further arguments; the weights are Q8_0."""
OUR_SERVER = "ours int8, server"


def serve_by(peer: Peer, requests: Sequence[Arrival]) -> TraceResult:
    """Raises: PeerError: the peer fails, or an answer has the wrong length."""
    found = peer.call("serve", requests=[(item.at, item.prompt, item.tokens) for item in requests])
    counts = [count for *_, count in found["times"]]
    if counts != [item.tokens for item in requests]:
        raise PeerError(f"answers have {sum(counts)} tokens instead of {sum(item.tokens for item in requests)}")
    return TraceResult(
        seconds=found["seconds"],
        tokens=sum(counts),
        prompt_tokens=sum(len(item.prompt) for item in requests),
        first_token=[first for first, *_ in found["times"]],
        per_token=[(last - first) / (count - 1) for first, last, count in found["times"]],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_models(parser)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--rounds", type=int, default=3)
    add_python(parser)
    arguments = start(parser)
    source, int8, gguf = models(arguments)
    tokenizer, model = Tokenizer.from_directory(source), load(int8)
    systems: dict[str, Callable[[Sequence[Arrival]], TraceResult]] = {
        f"ours {name}": partial(replay, Engine(model, tokenizer, EngineConfig(kv_cache_dtype=dtype)))
        for name, dtype in (("int8", "auto"), ("bfloat16", "bfloat16"))
    }
    peers, versions = start_peers({name: worker for name, (worker, *_) in PEERS.items()}, arguments.peers_python)
    our_server, our_version = start_peers({OUR_SERVER: "faquant_server"}, Path(sys.executable))
    peers, versions = our_server | peers, our_version | versions
    for name, peer in peers.items():
        _, kv, more = PEERS.get(name, ("", "auto", {}))
        model_path = int8 if name == OUR_SERVER else gguf
        try:
            peer.call("load", model=str(model_path.resolve()), kv=kv, threads=arguments.threads, **more)
            systems[name] = partial(serve_by, peer)
        except PeerError as error:
            versions[name] += f", skipped: {error}"
            print(f"{name}: skipped: {error}")
    texts = [tokenizer.encode(text, add_special_tokens=False) for text in builtin_texts().values()]
    rows: list[dict[str, object]] = []
    for rate in arguments.rates:
        served: dict[str, list[TraceResult]] = {name: [] for name in systems}
        for number in range(arguments.rounds + 1):  # the first one warms up
            requests = trace(texts, arguments.requests, rate, seed=number)
            for name in list(systems):
                try:
                    served[name].append(systems[name](requests))
                    print(f"  {name}: {served[name][-1].seconds:.1f} s", file=sys.stderr, flush=True)
                except PeerError as error:
                    print(f"{name}: skipped: {error}")
                    del systems[name], served[name]
        come = f"{rate:g} per second" if rate else "all at once"
        print(f"\n{arguments.requests} requests, {come}")
        print(f"{'':20}{'tokens/s':>10}{'seconds':>9}{'first':>16}{'each, ms':>16}")
        for name, some in served.items():
            one = sorted(some[1:], key=lambda each: each.tokens_per_second)[arguments.rounds // 2]
            figures = one.figures()
            rows.append({"rate": rate, "system": name, **figures})
            print(
                f"{name:20}{figures['tokens_per_second']:10.0f}{figures['seconds']:9.1f}"
                f"{figures['first_token_p50']:8.2f}{figures['first_token_p99']:8.2f}"
                f"{figures['per_token_p50'] * 1e3:8.0f}{figures['per_token_p99'] * 1e3:8.0f}",
                flush=True,
            )
    for peer in peers.values():
        peer.close()
    finish(arguments, rows, peers=versions)


if __name__ == "__main__":
    main()
