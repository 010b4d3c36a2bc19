"""What the tests of lm-evaluation-harness share: small models, and tasks whose data is a local file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.tiny_models import tiny_model
from oracles.tiny_tokenizer import VOCAB_SIZE, write_tokenizer

CONTEXT = 192


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_model("smollm", folder / "float", vocab_size=VOCAB_SIZE, max_position_embeddings=CONTEXT)
    write_tokenizer(folder / "float")
    ids = torch.randint(0, 256, (100,), generator=torch.Generator().manual_seed(1)).tolist()
    for recipe in ("default", "static"):
        quantize(folder / "float", folder / recipe, RECIPES[recipe], [ids])
    return folder


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Three local tasks, one of each kind of request."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"What is {n} + 1?", "options": ["1", "22", "x"], "gold": n % 3} for n in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "rows.jsonl")},
            "cache_dir": str(tmp_path / "datasets"),
        },
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    kinds: dict[str, dict[str, Any]] = {
        "local_choice": {"output_type": "multiple_choice", "doc_to_choice": "{{options}}", "doc_to_target": "gold"},
        "local_rolling": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}"},
        "local_likelihood": {
            "output_type": "loglikelihood",
            "doc_to_target": " {{gold}}",
            "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
        },
        "local_answer": {
            "output_type": "generate_until",
            "doc_to_target": "{{gold}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        },
    }
    for name, kind in kinds.items():
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **shared, **kind}))
    return folder
