"""Median time of a decode step in milliseconds, for comparing two checkouts in alternating processes.

    python benchmarks/decode_steps.py OUT SEQUENCES DEPTH

OUT is a quantized directory; every sequence has DEPTH tokens in the cache.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np

from faquant.model.load import load
from faquant.model.paged import Chunk, PagedDecoder
from faquant.model.rope import Rope

PAGE_SIZE, STEPS, WARM_UP = 128, 40, 4


def main() -> None:
    model, sequences, depth = load(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    count = -(-(depth + STEPS) // PAGE_SIZE)
    decoder = PagedDecoder(model.decoder, model.make_pages(count * sequences, PAGE_SIZE), model.backend)
    rope = Rope(model.config, depth + STEPS)
    tables = np.arange(count * sequences).reshape(sequences, count)
    for table in tables:
        decoder.run([Chunk(np.arange(depth) % 1000 + 5, 0, table, rope)])
    times = []
    for step in range(STEPS):
        started = time.perf_counter()
        chunks = [Chunk(np.array([7]), depth + step, table, rope) for table in tables]
        model.decoder.logits(decoder.run(chunks))
        times.append(time.perf_counter() - started)
    print(f"{1e3 * statistics.median(times[WARM_UP:]):.2f}")


if __name__ == "__main__":
    main()
