"""The price of tensor parallelism in vLLM: one rank, two that gather rows, and two with scales of their own.

python benchmarks/vllm_ranks.py OUT [--rounds 5]

OUT is a checkpoint of faquant's whose heads two ranks can divide. Each rank has one thread, so two ranks have twice the
arithmetic of one. A step is (the time of 33 tokens - the time of 1) / 32 after prompts in the prefix cache; medians.
The services run one after another, and all answers but those of the last must be equal. Runs in the environment that
`make test-vllm` creates.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
PYTHON = HERE.parent / ".venv-vllm" / "bin" / "python"
SERVICES = {"one rank": (1, "row"), "two ranks": (2, "row"), "two ranks, scales of shards": (2, "shard")}
STEPS, BATCHES, PROMPT = 32, (1, 16), 2000


def run(directory: str, ranks: int, scales: str, rounds: int) -> None:
    """Print the times and answers of one service as JSON."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        directory,
        quantization="faquant",
        tensor_parallel_size=ranks,
        additional_config={"faquant_scales": scales},
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=PROMPT + 256,
        max_num_seqs=max(BATCHES),
        max_num_batched_tokens=1024,
    )

    def taken(prompts: list[list[int]], count: int) -> tuple[float, list[list[int]]]:
        sampling = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        begin = time.perf_counter()
        answers = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        return time.perf_counter() - begin, [list(each.outputs[0].token_ids) for each in answers]

    found: dict[str, float] = {}
    said = []
    for batch in BATCHES:
        prompts = [[(7 * i + n) % 250 for i in range(300)] for n in range(batch)]
        said += taken(prompts, 33)[1]
        times = [(taken(prompts, 1)[0], taken(prompts, 1 + STEPS)[0]) for _ in range(rounds)]
        found[f"step of {batch}"] = median((long - short) / STEPS for short, long in times)
    # A new prompt each time, which no cache knows.
    prefills = [taken([[(11 * i + n) % 250 for i in range(PROMPT)]], 1)[0] for n in range(1, rounds + 1)]
    found[f"prompt of {PROMPT}"] = median(prefills)
    print(json.dumps({"times": found, "said": said}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--service", choices=SERVICES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.service is not None:
        run(given.directory, *SERVICES[given.service], given.rounds)
        return
    environment = {
        **os.environ,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    one: dict[str, Any] | None = None
    for name in SERVICES:
        command = [PYTHON, __file__, given.directory, "--rounds", str(given.rounds), "--service", name]
        ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        line = next((line for line in ended.stdout.splitlines() if line.startswith('{"times"')), None)
        if line is None:
            print(f"{name}: ended with status {ended.returncode}; the reason is above")
            continue
        result = json.loads(line)
        one = one or result
        shown = ", ".join(
            f"{what}: {1e3 * seconds:.2f} ms ({one['times'][what] / seconds:.2f}×)"
            for what, seconds in result["times"].items()
        )
        equal = result["said"] == one["said"]
        print(f"{name}: {shown}; answers {'equal' if equal else 'differ'}", flush=True)
        if not equal and name == "two ranks":
            sys.exit("Two ranks answer otherwise than one.")


if __name__ == "__main__":
    main()
