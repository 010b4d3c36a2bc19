"""Peak memory and time per layer for quantizing a model with LLaMA-3.1-70B's layer shapes, extrapolated to 80 layers.

python benchmarks/large_model.py FOLDER [--layers 4] [--tokens 4096] [--recipe default] [--threads N]

Writes a synthetic float checkpoint (1.7 GB per layer plus 4.2 GB) into a temporary directory in FOLDER, quantizes it
there in a subprocess, prints time and memory, and deletes both.
"""

import argparse
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from faquant.checkpoint.shards import ShardWriter, write_json
from faquant.kernels import threads

HIDDEN, HEADS, KV_HEADS, DIM, INNER, VOCABULARY = 8192, 64, 8, 128, 28672, 128256
FULL_LAYERS = 80
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
QUANTIZE = """
import sys, time
from faquant import quantize
start = time.monotonic()
quantize(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4],
         progress=lambda done, total: print(f"step {done} {time.monotonic() - start:.1f}", flush=True))
"""


def write_model(directory: Path, layers: int) -> None:
    """Gaussian weights with some larger channels, as in trained models."""
    generator = torch.Generator().manual_seed(0)

    def weight(rows: int, columns: int) -> torch.Tensor:
        scale = torch.ones(columns).index_fill_(0, torch.arange(7, columns, 997), 8.0) / columns**0.5
        parts = [torch.randn(min(2048, rows - row), columns, generator=generator) for row in range(0, rows, 2048)]
        return torch.cat([(part * scale).bfloat16() for part in parts])

    directory.mkdir(parents=True)
    write_json(directory / "config.json", {**CONFIG, "num_hidden_layers": layers})
    with ShardWriter(directory, "model") as writer:
        writer.add("model.embed_tokens.weight", weight(VOCABULARY, HIDDEN))
        for layer in range(layers):
            prefix = f"model.layers.{layer}."
            for name, rows, columns in (
                ("self_attn.q_proj", HEADS * DIM, HIDDEN),
                ("self_attn.k_proj", KV_HEADS * DIM, HIDDEN),
                ("self_attn.v_proj", KV_HEADS * DIM, HIDDEN),
                ("self_attn.o_proj", HIDDEN, HEADS * DIM),
                ("mlp.gate_proj", INNER, HIDDEN),
                ("mlp.up_proj", INNER, HIDDEN),
                ("mlp.down_proj", HIDDEN, INNER),
            ):
                writer.add(f"{prefix}{name}.weight", weight(rows, columns))
            for name in ("input_layernorm", "post_attention_layernorm"):
                writer.add(f"{prefix}{name}.weight", torch.ones(HIDDEN, dtype=torch.bfloat16))
        writer.add("model.norm.weight", torch.ones(HIDDEN, dtype=torch.bfloat16))
        writer.add("lm_head.weight", weight(VOCABULARY, HIDDEN))


def write_calibration(path: Path, tokens: int) -> None:
    """Prompts of 512 random tokens."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, VOCABULARY, (tokens // 512, 512), generator=generator).tolist()
    path.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--threads", type=int, default=threads.count())
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        folder = Path(place)
        source, target, calibration = folder / "float", folder / "quantized", folder / "calibration.jsonl"
        started = time.monotonic()
        write_model(source, arguments.layers)
        write_calibration(calibration, arguments.tokens)
        size = sum(path.stat().st_size for path in source.iterdir())
        print(f"{size / 1e9:.1f} GB written in {time.monotonic() - started:.0f} s", flush=True)
        command = [sys.executable, "-c", QUANTIZE, str(source), str(target), arguments.recipe, str(calibration)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        total = time.monotonic() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        times = [float(seconds) for seconds in re.findall(r"^step \d+ ([\d.]+)$", done.stdout, re.M)]
        layers = [later - earlier for earlier, later in itertools.pairwise(times[: arguments.layers + 1])]
        per_layer, ends = sum(layers) / len(layers), times[0] + times[-1] - times[arguments.layers]
        print(f"recipe {arguments.recipe}, {arguments.tokens} calibration tokens, {arguments.threads} threads")
        print(f"peak resident memory: {peak / 2**30:.2f} GiB for a float model of {size / 2**30:.1f} GiB")
        print(f"per layer: {per_layer:.0f} s ({', '.join(f'{seconds:.0f}' for seconds in layers)}); ends {ends:.0f} s")
        hours = (FULL_LAYERS * per_layer + ends) / 3600
        print(f"{FULL_LAYERS} layers: {hours:.1f} hours, the same memory; this run took {total:.0f} s in all")


if __name__ == "__main__":
    main()
