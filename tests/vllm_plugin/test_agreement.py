"""Ranks with different checkpoints or settings are refused. vLLM is not needed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from faquant.errors import UnsupportedError
from faquant.formats import open_checkpoint
from faquant.vllm.agreement import RankSettings, check_equal, identity
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


def test_large_tensors(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of another model with the same names, shapes and small tensors, and another dtype."""
    monkeypatch.setattr("faquant.vllm.agreement.MAPPED_BYTES", 0)
    other = tmp_path / "other"
    tiny_model("llama3", other, seed=1)
    assert of(other) != of(directory)
    tiny_model("llama3", other, "bfloat16")
    assert of(other) != of(directory)


@pytest.mark.parametrize("place", [0, -1])
def test_the_first_and_last_byte_of_a_large_tensor(
    place: int, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faquant.vllm.agreement.MAPPED_BYTES", 0)
    before, file = of(directory), directory / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"].reshape(-1).view(np.uint8)[place] ^= 1
    save_file(tensors, file)
    assert of(directory) != before


def test_a_setting_of_config_json(directory: Path) -> None:
    before, file = of(directory), directory / "config.json"
    file.write_text(file.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert of(directory) != before


A = RankSettings("a", "0.1", "row")


def test_all_alike() -> None:
    check_equal([A] * 3)


def test_another_checkpoint() -> None:
    with pytest.raises(UnsupportedError, match=r"Rank 2 has read another checkpoint than rank 0 \(b, not a\)"):
        check_equal([A, A, A._replace(checkpoint="b")])


def test_another_version() -> None:
    """Named first: another faquant may read the same files otherwise."""
    with pytest.raises(UnsupportedError, match=r"Rank 1 runs faquant 0\.2, but rank 0 0\.1\."):
        check_equal([A, RankSettings("b", "0.2", "row")])


def test_other_scales() -> None:
    with pytest.raises(UnsupportedError, match="faquant_scales is shard on rank 1, but row on rank 0"):
        check_equal([A, A._replace(scales="shard")])
