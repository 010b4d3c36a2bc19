"""llama.cpp on a checkpoint that faquant exports, beside the plain Q8_0 file of the same model.

python benchmarks/gguf_export.py MODEL OUT TEXT [--max-tokens 2048] [--peers-python PYTHON]

MODEL is the float directory and OUT its checkpoint by the recipe portable. Rows: mean KL of the float model's next
token to llama.cpp's in 10⁻³ nats, top-1 agreement, and their standard errors over windows of 1,024 tokens, with the
cache in float16 and in Q8_0. Before that, token ids and the chat template are compared with those of MODEL.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from next_tokens import FloatModel, parser_of
from peers.client import Peer
from peers.gguf_file import write_q8_0

from faquant.api import export_gguf
from faquant.text.tokenizer import Tokenizer

CHAT = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def check_tokens(peer: Peer, tokenizer: Tokenizer, text: str) -> None:
    """Compare token ids, by line and as a whole, and the chat template. Exits if one differs."""
    for part in (text, CHAT, *text.splitlines()):
        if part and peer.call("tokenize", text=part) != tokenizer.encode(part, add_special_tokens=False):
            sys.exit(f"other token ids: {part[:80]!r}")
    if peer.call("chat_template") != tokenizer.chat_template:
        sys.exit("another chat template")


def main() -> None:
    arguments = parser_of(__doc__, max_tokens=2048).parse_args()
    source = FloatModel(arguments.model, arguments.text, arguments.max_tokens)
    peer = Peer("llama_cpp", arguments.peers_python)
    print(f"{peer.call('version')}; {arguments.text.name}, {source.tokens} tokens: KL in 10⁻³ nats, top-1")
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder, "logits.npy")

        def logits(window: Sequence[int]) -> torch.Tensor:
            peer.call("logits", tokens=list(window), file=str(stored))
            return torch.from_numpy(np.load(stored))

        files = {"plain Q8_0": Path(folder, "plain.gguf"), "portable": Path(folder, "portable.gguf")}
        write_q8_0(arguments.model, files["plain Q8_0"])
        export_gguf(arguments.quantized, files["portable"])
        for cache in ("f16", "q8_0"):
            means = []
            for name, file in files.items():
                peer.call("load", model=str(file), kv=cache, threads=torch.get_num_threads())
                if name == "portable":
                    check_tokens(peer, source.tokenizer, source.text)
                found = source.compare(logits)
                means.append(found.kl)
                shown = "" if found.error is None else f" ± {found.error * 1e3:.3f}"
                print(
                    f"cache {cache:5} {name:12} {found.kl * 1e3:7.3f}{shown}  {found.top1:.2%}  "
                    f"{file.stat().st_size:,} bytes",
                    flush=True,
                )
            print(f"cache {cache:5} ratio {means[1] / means[0]:.2f}")
    peer.close()


if __name__ == "__main__":
    main()
