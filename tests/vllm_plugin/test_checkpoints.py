"""vLLM's engine with the plugin has the bits of faquant's for each recipe, other families, and other tools'
checkpoints; and in a cache that is too small for all requests."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faquant import api
from faquant.model.load import load
from faquant.model.paged import Chunk, PagedDecoder
from faquant.model.rope import Rope
from oracles.tiny_models import tiny_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(500)]

INTEROP = Path(__file__).parents[1] / "data" / "interop"
RECIPES = ["precise", "static", "attention-only", "mindie", "mindie-plain"]
TOOLS = ["msms-w8a8-fa3-int8", "llmc-w8a8-kv-attn_head-asym", "quark-kv-tensor-asym"]
FAMILIES = ["mistral-window", "smollm3", "granite", "ministral", "phi4-mini", "olmo3", "gemma3"]
VOCABULARY = 128  # the smallest of these


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Of each checkpoint, what forked.py prints."""
    base = tmp_path_factory.mktemp("checkpoints")
    (base / "ids.jsonl").write_text(json.dumps({"token_ids": list(range(100))}))
    for name in (*RECIPES, *FAMILIES):
        kind, recipe = (name, "default") if name in FAMILIES else ("llama3", name)
        source = base / f"{kind}-float"
        if not source.exists():
            tiny_model(kind, source)
        api.quantize(source, base / name, recipe, calibration=base / "ids.jsonl", device="cpu")
    directories = [*(base / name for name in (*RECIPES, *FAMILIES)), *(INTEROP / name for name in TOOLS)]
    random = np.random.default_rng(0)
    prompts = [random.integers(0, VOCABULARY, length).tolist() for length in (300, 100, 120, 110)]
    program = Path(__file__).with_name("forked.py")
    command = [sys.executable, str(program), json.dumps(prompts), "40", *map(str, directories)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=480, check=True)
    found = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"directory"')]
    return {Path(each["directory"]).name: each for each in found}


@pytest.mark.parametrize("name", [*RECIPES, *FAMILIES, *TOOLS])
def test_a_checkpoint(name: str, answers: Mapping[str, Any]) -> None:
    """Greedy tokens, and the logits they come from, of four prompts, one of which is cut. The cache holds five pages:
    some requests are preempted and computed again."""
    found = answers[name]
    assert found["preempted"] > 0
    model, seen = load(Path(found["directory"])), set(found["logits"])
    for prompt, answer in found["answers"]:
        ids = np.array(prompt + answer[:-1])
        table = np.arange(-(-len(ids) // 128))
        paged = PagedDecoder(model.decoder, model.make_pages(len(table), 128), model.backend)
        logits = paged.logits(paged.run([Chunk(ids, 0, table, Rope(model.config, model.max_position))]))[
            len(prompt) - 1 :
        ]
        assert answer == logits.argmax(-1).tolist()
        assert {hashlib.sha256(row.tobytes()).hexdigest() for row in logits} <= seen
