"""onnxruntime's int8 cache with faquant's scales, beside the plain model with scales by the least and greatest values.

python benchmarks/ort_genai_export.py MODEL OUT TEXT [--max-tokens 1024] [--peers-python PYTHON]

MODEL is the float directory and OUT its checkpoint by the recipe portable. onnxruntime-genai's builder makes float32
models of both, with its schemes of the cache. Rows: mean KL of the float model's next token to theirs in 10⁻³ nats and
top-1 agreement. The weights of portable are those of its int8 linears: `none` says what they cost alone.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from next_tokens import FloatModel, parser_of
from peers.client import Peer

from faquant import quantize
from faquant.quantization.exports.ort_genai import PER_CHANNEL, PER_TENSOR, export_ort_genai
from faquant.recipe import AttentionRecipe, Recipe

PLAIN = Recipe(
    name="plain",
    attention=AttentionRecipe(kv_scale="channel", center=False, equalize=False, rotate=False, rotate_v=False),
    linear=None,
)
SCHEMES = {"none": None, "int8_per_channel": PER_CHANNEL, "int8_per_tensor": PER_TENSOR}


def main() -> None:
    arguments = parser_of(__doc__, max_tokens=1024).parse_args()
    model = FloatModel(arguments.model, arguments.text, arguments.max_tokens)
    peer = Peer("ort_genai", arguments.peers_python)
    print(f"{peer.call('version')}; {arguments.text.name}, {model.tokens} tokens: KL in 10⁻³ nats, top-1")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        quantize(arguments.model, place / "plain-int8", PLAIN)
        for name, directory in (("portable", arguments.quantized), ("plain", place / "plain-int8")):
            export_ort_genai(directory, place / name)
            for scheme, file in SCHEMES.items():
                built = place / f"{name}-{scheme}"
                scales = None if file is None else str(place / name / file)
                peer.call("build", source=str(place / name), target=str(built), scheme=scheme, scales=scales)

                def logits(window: Sequence[int], built: Path = built) -> torch.Tensor:
                    peer.call("logits", directory=str(built), tokens=list(window), file=str(place / "logits.npy"))
                    return torch.from_numpy(np.load(place / "logits.npy"))

                found = model.compare(logits)
                print(f"{name:10} {scheme:18} {found.kl * 1e3:8.3f}  {found.top1:.2%}", flush=True)
    peer.close()


if __name__ == "__main__":
    main()
