"""Two processes of vLLM compute together what one of faquant's computes alone."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from faquant import api
from faquant.model.load import load
from faquant.model.paged import Chunk, PagedDecoder
from faquant.model.rope import Rope
from oracles.tiny_models import tiny_model

pytestmark = pytest.mark.vllm

PROMPT, ANSWER = 300, 20


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("tensor_parallel", "pipeline_parallel"), [(2, 1), (1, 2)], ids=["tensor", "pipeline"])
def test_two_ranks_have_the_bits_of_one(tensor_parallel: int, pipeline_parallel: int, tmp_path: Path) -> None:
    """With a prompt that is cut, and whatever dtype vLLM is given: all hidden states, and greedy tokens."""
    tiny_model("llama3", tmp_path / "float")
    (tmp_path / "ids.jsonl").write_text(json.dumps({"token_ids": list(range(100))}))
    directory = tmp_path / "int8"
    api.quantize(tmp_path / "float", directory, calibration=tmp_path / "ids.jsonl", device="cpu")
    ids = np.random.default_rng(0).integers(0, 256, PROMPT).tolist()
    ranks = Path(__file__).with_name("ranks.py")
    numbers = str(tensor_parallel), str(pipeline_parallel)
    command = [sys.executable, str(ranks), str(directory), *numbers, "bfloat16", json.dumps(ids), str(ANSWER)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=360, check=True)
    found = json.loads(next(line for line in ended.stdout.splitlines() if line.startswith('{"tokens"')))

    model = load(directory)
    every = np.array(ids + found["tokens"][:-1])
    pages = PagedDecoder(model.decoder, model.make_pages(3, 128), model.backend)
    hidden = pages.run([Chunk(every, 0, np.arange(3), Rope(model.config))])
    assert found["tokens"] == pages.logits(hidden)[PROMPT - 1 :].argmax(-1).tolist()
    assert found["seen"][-tensor_parallel:] == [hashlib.sha256(hidden.tobytes()).hexdigest()] * tensor_parallel
