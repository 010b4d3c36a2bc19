"""Float operations compared with torch: linears with float32 and bfloat16 weights, and attention with a float32 cache.

python benchmarks/floats.py [--rows 1 8 32 512] [--threads N] [--json FILE]

"×" is the time of torch's float32 divided by faquant's, interleaved in one run. torch's SDPA gets the query heads of a
group as rows if one token is decoded, which is fastest, and is_causal for a prompt. "Others" is the share of the CPU
that other processes took; a row with more than 0.05 is repeated, and has a "!" if that did not help. Results are
compared first.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from timing import finish, quiet_seconds, shown_share, start
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from faquant.kernels import _C

# SmolLM2-135M's up, down and head, Llama-3.1-8B's q: outputs, inputs.
SHAPES = ((1536, 576), (576, 1536), (49152, 576), (4096, 4096))
# Heads, key/value heads, channels, tokens, depth.
ATTENTION = ((9, 3, 64, 1, 2000), (9, 3, 64, 2000, 2000), (32, 8, 128, 1, 2000), (32, 8, 128, 500, 500))
PAGE_SIZE = 128


def require_close(x: np.ndarray, y: Tensor) -> None:
    if not torch.allclose(torch.from_numpy(x), y, atol=1e-3, rtol=1e-3):
        raise SystemExit("The kernel's result differs from torch's.")


def packed(weight: np.ndarray, threads: int) -> _C.FloatLinear:
    outputs, inputs = weight.shape
    store = np.empty(inputs * outputs, weight.dtype)
    _C.pack_float_weight(weight, store, threads)
    return _C.FloatLinear(inputs=inputs, outputs=outputs, weight=store, bias=None)


def measure_linear(outputs: int, inputs: int, rows: int, threads: int) -> dict[str, float]:
    """Times in seconds, and the share of the CPU that `others` took."""
    weight, x = torch.randn(outputs, inputs), torch.randn(rows, inputs)
    out, bits = np.empty((rows, outputs), np.float32), weight.bfloat16().view(torch.uint16)
    float32, bfloat16 = packed(weight.numpy(), threads), packed(bits.numpy(), threads)
    float32.apply(x.numpy(), out, threads)
    require_close(out, linear(x, weight))
    calls: dict[str, Callable[[], object]] = {
        "float32": lambda: float32.apply(x.numpy(), out, threads),
        "bfloat16": lambda: bfloat16.apply(x.numpy(), out, threads),
        "torch": lambda: linear(x, weight),
    }
    times, others = quiet_seconds(calls, 30 if rows <= 8 else 10)
    return {**times, "others": others}


def measure_attention(heads: int, kv_heads: int, dim: int, tokens: int, depth: int, threads: int) -> dict[str, float]:
    """Times in seconds, and the share of the CPU that `others` took."""
    pages, group = -(-depth // PAGE_SIZE), heads // kv_heads
    stores = [np.empty((pages, PAGE_SIZE, kv_heads, dim), np.float32) for _ in range(2)]
    cache = _C.FloatCache(heads=heads, k=stores[0], v=stores[1])
    q, k, v = (torch.randn(n, h, dim) for n, h in ((tokens, heads), (depth, kv_heads), (depth, kv_heads)))
    cache.append(k, v, np.arange(depth))
    out, spans, table = (
        np.empty((tokens, heads, dim), np.float32),
        np.array([[tokens, depth - tokens]]),
        np.arange(pages),
    )
    keys, values = (x.transpose(0, 1)[None].contiguous() for x in (k, v))

    def ours() -> None:
        cache.attend(out, q.numpy(), spans, table[None], None, threads)

    def peer() -> Tensor:
        if tokens == 1:
            return scaled_dot_product_attention(q.view(1, kv_heads, group, dim), keys, values).view(1, heads, dim)
        wide = (x.repeat_interleave(group, 1) for x in (keys, values))
        return scaled_dot_product_attention(q.transpose(0, 1)[None], *wide, is_causal=True)[0].transpose(0, 1)

    ours()
    require_close(out, peer())
    times, others = quiet_seconds({"float32": ours, "torch": peer}, 30 if tokens == 1 else 5)
    return {**times, "others": others}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 512])
    arguments = start(parser)
    found: list[dict[str, object]] = []
    print("outputs inputs   rows  float32 µs  torch    bfloat16 µs  torch  others")
    for outputs, inputs in SHAPES:
        for rows in arguments.rows:
            times = measure_linear(outputs, inputs, rows, arguments.threads)
            found.append({"outputs": outputs, "inputs": inputs, "rows": rows, **times})
            cells = "    ".join(
                f"{times[k] * 1e6:9.0f} {times['torch'] / times[k]:6.1f}×" for k in ("float32", "bfloat16")
            )
            print(f"{outputs:7} {inputs:6} {rows:6}   {cells}  {shown_share(times['others'])}", flush=True)
    print("  heads tokens  depth  float32 µs  torch  others")
    for shape in ATTENTION:
        times = measure_attention(*shape, arguments.threads)
        heads, kv_heads, dim, tokens, depth = shape
        found.append({"heads": heads, "kv_heads": kv_heads, "dim": dim, "tokens": tokens, "depth": depth, **times})
        cells = f"{times['float32'] * 1e6:9.0f} {times['torch'] / times['float32']:6.1f}×"
        print(f"{heads:3}/{kv_heads}/{dim} {tokens:5} {depth:6}   {cells}  {shown_share(times['others'])}", flush=True)
    finish(arguments, found)


if __name__ == "__main__":
    main()
