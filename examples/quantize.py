"""Quantize a model and print the loss: python examples/quantize.py MODEL OUT"""

import sys

from faquant import evaluate, quantize


def main(model: str, output: str) -> None:
    tokens = quantize(model, output, recipe="default")
    print(f"calibrated on {tokens:,} tokens")
    report = evaluate(output, against=model, quick=True)
    for text, variants in report.texts.items():
        whole = variants["both"]
        print(f"{text}: KL {whole.kl_mean:.1e} nats, the same top token at {whole.top1:.1%} of positions")


if __name__ == "__main__":
    main(*sys.argv[1:])
