"""Two processes of vLLM compute together what one of faquant's computes alone."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faquant import api
from faquant.kernels.scheme import MAX_INPUT_BLOCK
from faquant.model.load import load
from faquant.model.paged import Chunk, PagedDecoder
from faquant.model.rope import Rope
from oracles.rank_threads import Stored, results
from oracles.tiny_models import tiny_model

pytestmark = pytest.mark.vllm


def quantized(base: Path, **overrides: Any) -> Path:
    """A small model with the recipe `default`."""
    tiny_model("llama3", base / "float", **overrides)
    (base / "ids.jsonl").write_text(json.dumps({"token_ids": list(range(100))}))
    api.quantize(base / "float", base / "int8", calibration=base / "ids.jsonl", device="cpu")
    return base / "int8"


def run(directory: Path, ranks: tuple[int, int], ids: list[int], *scales: str) -> dict[str, Any]:
    """Greedy tokens, and for each rank the sha256 of all hidden states."""
    program = Path(__file__).with_name("ranks.py")
    command = [
        sys.executable,
        str(program),
        str(directory),
        *map(str, ranks),
        "bfloat16",
        json.dumps(ids),
        "20",
        *scales,
    ]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=360, check=True)
    found: dict[str, Any] = json.loads(next(line for line in ended.stdout.splitlines() if line.startswith('{"tokens"')))
    return found


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("tensor_parallel", "pipeline_parallel"), [(2, 1), (1, 2)], ids=["tensor", "pipeline"])
def test_two_ranks_have_the_bits_of_one(tensor_parallel: int, pipeline_parallel: int, tmp_path: Path) -> None:
    """With a prompt that is cut, and whatever dtype vLLM is given: all hidden states, and greedy tokens."""
    directory, ids = quantized(tmp_path), np.random.default_rng(0).integers(0, 256, 300).tolist()
    found = run(directory, (tensor_parallel, pipeline_parallel), ids)
    model = load(directory)
    every = np.array(ids + found["tokens"][:-1])
    pages = PagedDecoder(model.decoder, model.make_pages(3, 128), model.backend)
    hidden = pages.run([Chunk(every, 0, np.arange(3), Rope(model.config))])
    assert found["tokens"] == pages.logits(hidden)[len(ids) - 1 :].argmax(-1).tolist()
    assert found["seen"][-tensor_parallel:] == [hashlib.sha256(hidden.tobytes()).hexdigest()] * tensor_parallel


@pytest.mark.timeout(400)
def test_scales_of_shards(tmp_path: Path) -> None:
    """Two processes answer as two threads that add what each has computed, and agree on all hidden states."""
    directory = quantized(tmp_path, intermediate_size=2 * MAX_INPUT_BLOCK)
    ids = np.random.default_rng(0).integers(0, 256, 200).tolist()
    found = run(directory, (2, 1), ids, "shard")
    first, second = found["seen"]
    assert first == second
    (logits, _), _ = results(Stored(directory), 2, sums=True, ids=np.array(ids + found["tokens"][:-1]))
    assert found["tokens"] == logits[len(ids) - 1 :].argmax(-1).tolist()
