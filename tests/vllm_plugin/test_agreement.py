"""Ranks with different checkpoints or settings are refused. vLLM is not needed."""

import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from faquant.errors import UnsupportedError
from faquant.formats import open_checkpoint
from faquant.vllm.agreement import check_equal, identity
from oracles.tiny_models import tiny_model

NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tiny_model("llama3", tmp_path / "model")
    return tmp_path / "model"


def of(directory: Path) -> str:
    return identity(open_checkpoint(directory))


def test_a_copy_is_the_same_checkpoint(directory: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(directory, tmp_path / "copy")
    assert of(copy) == of(directory)


def test_one_value_of_a_norm(directory: Path) -> None:
    before, file = of(directory), directory / "model.safetensors"
    tensors = load_file(file)
    tensors[NORM][-1] += 1
    save_file(tensors, file)
    assert of(directory) != before


def test_the_dtype_of_large_tensors(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their values are not read."""
    monkeypatch.setattr("faquant.vllm.agreement.MAPPED_BYTES", 0)
    other = tmp_path / "other"
    tiny_model("llama3", other, seed=1)
    assert of(other) == of(directory)
    tiny_model("llama3", other, "bfloat16")
    assert of(other) != of(directory)


def test_a_setting_of_config_json(directory: Path) -> None:
    before, file = of(directory), directory / "config.json"
    file.write_text(file.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert of(directory) != before


def test_all_alike() -> None:
    check_equal([("a", "row")] * 3)


def test_another_checkpoint() -> None:
    with pytest.raises(UnsupportedError, match=r"Rank 2 has read another checkpoint than rank 0 \(b, not a\)"):
        check_equal([("a", "row"), ("a", "row"), ("b", "row")])


def test_other_scales() -> None:
    with pytest.raises(UnsupportedError, match="faquant_scales is shard on rank 1, but row on rank 0"):
        check_equal([("a", "row"), ("a", "shard")])
