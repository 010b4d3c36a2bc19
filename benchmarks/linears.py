"""int8 linears: faquant, torch's oneDNN int8 product with its epilogue, and torch's float linears, in one run.

python benchmarks/linears.py [--rows 1 8 128 1024] [--threads N] [--json FILE]

Times are for the whole linear, including quantization of the inputs (without rotation) and dequantization. "×" is the
peer's time divided by faquant's. A fraction is the bytes of the weight / time / the bandwidth at which the same threads
read memory in small pages in the same run. "Others" is the share of the CPU that other processes took; a row with more
than 0.05 is repeated, and has a "!" if that did not help. Results are first checked against the oracle.
"""

import argparse
from collections.abc import Callable

import torch
from timing import SMALL, Streams, finish, quiet_seconds, shown_share, start
from torch import Tensor

from faquant.kernels import reference
from faquant.kernels.modules import DynamicLinear
from faquant.kernels.quantizers import quantize_rows

# SmolLM2-135M's q and up, Llama-3.1-8B's q and up: outputs, inputs.
SHAPES = ((576, 576), (1536, 576), (4096, 4096), (14336, 4096))
COLD_BYTES = 128 << 20
"""Total size of the weights that are used in turn, more than fits into the CPU caches, as in a decode step."""


def one_dnn(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The same with torch, whose product needs at least 17 rows."""
    x8, x_scale = quantize_rows(x)
    rows = len(x8)
    padded = torch.nn.functional.pad(x8, (0, 0, 0, max(0, 17 - rows)))
    return torch._int_mm(padded, weight.t())[:rows].float() * scale * x_scale[:, None]


def measure(outputs: int, inputs: int, rows: int, streams: Streams) -> dict[str, float]:
    """Times in seconds for one linear, memory bandwidths in bytes per second, and the share of the CPU that `others`
    took."""
    copies = max(1, COLD_BYTES // (outputs * inputs))
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    scale, x = torch.rand(outputs) * 0.01, torch.randn(rows, inputs)
    ours = [DynamicLinear(weight.numpy(), scale.numpy()) for _ in range(copies)]
    if not torch.equal(ours[0](x), reference.dynamic_linear(x, weight, scale)):
        raise SystemExit("The kernel's result differs from the oracle's.")
    ints = [weight.clone() for _ in range(copies)]
    halves = [weight.bfloat16() for _ in range(max(1, copies // 2))]
    floats = [weight.float() for _ in range(max(1, copies // 4))]
    x16, turn = x.bfloat16(), [0]

    def each(call: Callable[[int], object]) -> Callable[[], None]:
        def run() -> None:
            turn[0] += 1
            call(turn[0])

        return run

    calls: dict[str, Callable[[], object]] = {
        "ours": each(lambda i: ours[i % len(ours)](x)),
        "oneDNN int8": each(lambda i: one_dnn(x, ints[i % len(ints)], scale)),
        "bf16": each(lambda i: torch.nn.functional.linear(x16, halves[i % len(halves)])),
        "fp32": each(lambda i: torch.nn.functional.linear(x, floats[i % len(floats)])),
        **streams.calls,
    }
    times, others = quiet_seconds(calls, 30 if rows <= 8 else 10)
    return {**times, **streams.take_rates(times), "others": others}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 128, 1024])
    arguments = start(parser)
    print("outputs inputs   rows   ours µs    GOPS  fraction   oneDNN int8     bf16     fp32  others")
    streams = Streams(arguments.threads)
    found: list[dict[str, object]] = []
    for outputs, inputs in SHAPES:
        for rows in arguments.rows:
            row = measure(outputs, inputs, rows, streams)
            found.append({"outputs": outputs, "inputs": inputs, "rows": rows, **row})
            operations = 2 * rows * outputs * inputs / row["ours"] / 1e9
            share = outputs * inputs / row["ours"] / row[SMALL]
            peers = "  ".join(f"{row[kind] / row['ours']:6.1f}×" for kind in ("oneDNN int8", "bf16", "fp32"))
            mine = f"{row['ours'] * 1e6:9.0f} {operations:7.0f} {share:9.2f}"
            print(f"{outputs:7} {inputs:6} {rows:6} {mine}        {peers}  {shown_share(row['others'])}", flush=True)
    finish(arguments, found)


if __name__ == "__main__":
    main()
