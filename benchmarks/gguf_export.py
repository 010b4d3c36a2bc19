"""llama.cpp on a checkpoint that faquant exports, beside the plain Q8_0 file of the same model.

python benchmarks/gguf_export.py MODEL OUT TEXT [--max-tokens 2048] [--peers-python PYTHON]

MODEL is the float directory and OUT its checkpoint by the recipe portable. Rows: mean KL of the float model's next
token to llama.cpp's in 10⁻³ nats, top-1 agreement, and their standard errors over windows of 1,024 tokens, with the
cache in float16 and in Q8_0. Before that, token ids and the chat template are compared with those of MODEL.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peers.client import Peer, add_python
from peers.gguf_file import write_q8_0

from faquant.api import export_gguf
from faquant.evaluation.divergence import WINDOW, standard_error, window_logits
from faquant.model.load import load
from faquant.text.tokenizer import Tokenizer

CHAT = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def check_tokens(peer: Peer, tokenizer: Tokenizer, text: str) -> None:
    """Compare token ids, by line and as a whole, and the chat template. Exits if one differs."""
    for part in (text, CHAT, *text.splitlines()):
        if part and peer.call("tokenize", text=part) != tokenizer.encode(part, add_special_tokens=False):
            sys.exit(f"other token ids: {part[:80]!r}")
    if peer.call("chat_template") != tokenizer.chat_template:
        sys.exit("another chat template")


def losses(
    peer: Peer, windows: Sequence[Sequence[int]], exact: Sequence[torch.Tensor], file: Path
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """KL and top-1 agreement of each token, by window; `exact` are the float model's log-probabilities."""
    kl, same = [], []
    for ids, p in zip(windows, exact, strict=True):
        peer.call("logits", tokens=list(ids), file=str(file))
        q = torch.from_numpy(np.load(file)).double().log_softmax(-1)
        kl.append((p.exp() * (p - q)).sum(-1))
        same.append((p.argmax(-1) == q.argmax(-1)).double())
    return kl, same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("quantized", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--max-tokens", type=int, default=2048)
    add_python(parser)
    arguments = parser.parse_args()
    tokenizer, text = Tokenizer.from_directory(arguments.model), arguments.text.read_text(encoding="utf-8")
    ids = tokenizer.encode(text, add_special_tokens=False)[: arguments.max_tokens]
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    source = load(arguments.model)
    exact = [torch.as_tensor(window_logits(source, torch.tensor(w))).double().log_softmax(-1) for w in windows]
    peer = Peer("llama_cpp", arguments.peers_python)
    print(f"{peer.call('version')}; {arguments.text.name}, {len(ids)} tokens: KL in 10⁻³ nats, top-1")
    with tempfile.TemporaryDirectory() as folder:
        files = {"plain Q8_0": Path(folder, "plain.gguf"), "portable": Path(folder, "portable.gguf")}
        write_q8_0(arguments.model, files["plain Q8_0"])
        export_gguf(arguments.quantized, files["portable"])
        for cache in ("f16", "q8_0"):
            means = []
            for name, file in files.items():
                peer.call("load", model=str(file), kv=cache, threads=torch.get_num_threads())
                if name == "portable":
                    check_tokens(peer, tokenizer, text)
                kl, same = losses(peer, windows, exact, Path(folder, "logits.npy"))
                means.append(float(torch.cat(kl).mean()) * 1e3)
                error = standard_error(kl)
                shown = "" if error is None else f" ± {error * 1e3:.3f}"
                size = file.stat().st_size
                print(
                    f"cache {cache:5} {name:12} {means[-1]:7.3f}{shown}  {float(torch.cat(same).mean()):.2%}  "
                    f"{size:,} bytes",
                    flush=True,
                )
            print(f"cache {cache:5} ratio {means[1] / means[0]:.2f}")
    peer.close()


if __name__ == "__main__":
    main()
