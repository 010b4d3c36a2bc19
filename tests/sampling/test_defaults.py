"""What a model recommends in generation_config.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from faquant.errors import CheckpointError
from faquant.sampling.defaults import sampling_defaults


def read(directory: Path, table: Any) -> dict[str, float]:
    (directory / "generation_config.json").write_text(json.dumps(table))
    return sampling_defaults(directory)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, {}),
        ({"eos_token_id": 2, "max_new_tokens": 2048, "do_sample": False}, {}),
        (
            {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.05, "do_sample": True},
            {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.05},
        ),
        ({"temperature": None, "top_k": 50, "typical_p": 0.5}, {"top_k": 50}),
        ({"do_sample": False, "temperature": 0.9}, {"temperature": 0.9}),
    ],
)
def test_recommendations(tmp_path: Path, table: Any, expected: Any) -> None:
    assert read(tmp_path, table) == expected


def test_a_model_may_recommend_nothing(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path) == {}


@pytest.mark.parametrize("table", [{"temperature": -1}, {"top_p": 2}, {"top_k": "many"}, {"repetition_penalty": [1]}])
def test_a_value_outside_its_range_names_the_file(tmp_path: Path, table: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {next(iter(table))} must be"):
        read(tmp_path, table)
