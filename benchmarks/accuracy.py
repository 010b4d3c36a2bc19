"""The loss of several quantized directories of one model, measured in one run: the table in docs/accuracy.md.

python benchmarks/accuracy.py MODEL TEXT OUT [OUT …] [--max-tokens N]
"""

import argparse
import sys
from pathlib import Path

from faquant.evaluation.divergence import compare, variants
from faquant.model.load import load
from faquant.text.tokenizer import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("quantized", type=Path, nargs="+")
    parser.add_argument("--max-tokens", type=int)
    arguments = parser.parse_args()
    source = load(arguments.model, lazy=True)
    candidates = {
        f"{path.name} {part}": model
        for path in arguments.quantized
        for part, model in variants(load(path, lazy=True), source).items()
    }
    text = arguments.text.read_text(encoding="utf-8")
    ids = Tokenizer.from_directory(arguments.model).encode(text, add_special_tokens=False)[: arguments.max_tokens]
    results = compare(
        source, candidates, ids, progress=lambda done, total: print(f"layer {done} of {total}", file=sys.stderr)
    )
    print(f"{arguments.text.name}, {len(ids)} tokens: KL mean and p99 in 10⁻³ nats, top-1, PPL, PPL float")
    for name, result in results.items():
        print(
            f"{name:28} {result.kl_mean * 1e3:8.3f} {result.kl_p99 * 1e3:8.2f} {result.top1:8.2%} "
            f"{result.perplexity:8.3f} {result.perplexity_float:8.3f}"
        )


if __name__ == "__main__":
    main()
