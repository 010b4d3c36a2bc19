"""onnxruntime's int8 cache with faquant's scales, beside the plain model with scales by the least and greatest values.

python benchmarks/ort_genai_export.py MODEL OUT TEXT [--max-tokens 1024] [--peers-python PYTHON]

MODEL is the float directory and OUT its checkpoint by the recipe portable. onnxruntime-genai's builder makes float32
models of both, with its schemes of the cache. Rows: mean KL of the float model's next token to theirs in 10⁻³ nats and
top-1 agreement. The weights of portable are those of its int8 linears: `none` says what they cost alone.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from peers.client import Peer, add_python

from faquant import quantize
from faquant.evaluation.divergence import WINDOW, window_logits
from faquant.model.load import load
from faquant.quantization.ort_genai import PER_CHANNEL, PER_TENSOR, export_ort_genai
from faquant.recipe import AttentionRecipe, Recipe
from faquant.text.tokenizer import Tokenizer

PLAIN = Recipe(
    name="plain",
    attention=AttentionRecipe(kv_scale="channel", center=False, equalize=False, rotate=False, rotate_v=False),
    linear=None,
)
SCHEMES = {"none": None, "int8_per_channel": PER_CHANNEL, "int8_per_tensor": PER_TENSOR}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("quantized", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--max-tokens", type=int, default=1024)
    add_python(parser)
    arguments = parser.parse_args()
    tokenizer, text = Tokenizer.from_directory(arguments.model), arguments.text.read_text(encoding="utf-8")
    ids = tokenizer.encode(text, add_special_tokens=False)[: arguments.max_tokens]
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    source = load(arguments.model)
    exact = [torch.as_tensor(window_logits(source, torch.tensor(w))).double().log_softmax(-1) for w in windows]
    peer = Peer("ort_genai", arguments.peers_python)
    print(f"{peer.call('version')}; {arguments.text.name}, {len(ids)} tokens: KL in 10⁻³ nats, top-1")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        quantize(arguments.model, place / "plain-int8", PLAIN)
        for name, directory in (("portable", arguments.quantized), ("plain", place / "plain-int8")):
            export_ort_genai(directory, place / name)
            for scheme, file in SCHEMES.items():
                built = place / f"{name}-{scheme}"
                scales = None if file is None else str(place / name / file)
                peer.call("build", source=str(place / name), target=str(built), scheme=scheme, scales=scales)
                kl, same = [], []
                for window, p in zip(windows, exact, strict=True):
                    peer.call("logits", directory=str(built), tokens=window, file=str(place / "logits.npy"))
                    q = torch.from_numpy(np.load(place / "logits.npy")).double().log_softmax(-1)
                    kl.append((p.exp() * (p - q)).sum(-1))
                    same.append((p.argmax(-1) == q.argmax(-1)).double())
                mean, agreed = float(torch.cat(kl).mean()) * 1e3, float(torch.cat(same).mean())
                print(f"{name:10} {scheme:18} {mean:8.3f}  {agreed:.2%}", flush=True)
    peer.close()


if __name__ == "__main__":
    main()
