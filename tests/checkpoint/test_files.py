"""Which files of a directory are read: indexes, parts, and contradictions."""

import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from faquant.checkpoint.tensors import TensorFiles
from faquant.errors import CheckpointError
from oracles.tensor_files import QUANT, A, put, put_index, put_parts, raw


@pytest.mark.parametrize(
    "name",
    [
        "../out.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        "",
        ".",
        "x\0.safetensors",
        "x.bin",
        "a\\b.safetensors",
        3,
    ],
)
def test_index_with_paths(tmp_path: Path, name: object) -> None:
    (tmp_path / "in").mkdir()
    put(tmp_path, raw(A, bytes(8)), "out.safetensors")
    put_index(tmp_path / "in", {"a": name})
    with pytest.raises(CheckpointError, match="plain name"):
        TensorFiles.open(tmp_path / "in")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b'{"weight_map":[]}',
        b'{"weight_map":{}}',
        b"\xff",
        b"[" * 100_000,
        b'{"weight_map":{"a":"b","a":"c"}}',
    ],
)
def test_index_that_is_none(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, content, "model.safetensors.index.json")
    with pytest.raises(CheckpointError, match=r"index\.json"):
        TensorFiles.open(tmp_path)


def test_index_of_absurd_size(tmp_path: Path) -> None:
    put(tmp_path, b"{", "model.safetensors.index.json")
    os.truncate(tmp_path / "model.safetensors.index.json", 100 << 30)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="larger than"):
        TensorFiles.open(tmp_path)
    assert time.monotonic() - start < 2


def test_index_contradictions(tmp_path: Path) -> None:
    put_parts(tmp_path)
    first, second = (f"model-{i:05}-of-00002.safetensors" for i in (1, 2))
    cases: list[tuple[dict[str, str], str]] = [
        ({"x": first, "y": second}, "'z'"),  # a part holds more than the index says
        ({"x": first, "y": second, "z": second, "lost": first}, "'lost'"),
        ({"x": second, "y": second, "z": first}, "'x'"),
        ({"x": first}, "'model-00002-of-00002.safetensors', which .* does not name"),
        ({"x": first, "y": second, "z": second, "w": "model-00003-of-00002.safetensors"}, "00003-of-00002.* not exist"),
    ]
    for weight_map, message in cases:
        put_index(tmp_path, weight_map)
        with pytest.raises(CheckpointError, match=message):
            TensorFiles.open(tmp_path)


def test_tensor_in_two_parts(tmp_path: Path) -> None:
    names = [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    save_file({"a": torch.zeros(2)}, tmp_path / names[0])
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / names[1])
    put_index(tmp_path, {"a": names[0], "b": names[1]})
    with pytest.raises(CheckpointError, match=r"'a'.*00001-of-00002.*00002-of-00002"):
        TensorFiles.open(tmp_path)


def test_parts_without_index(tmp_path: Path) -> None:
    put_parts(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json.*Download the index"):
        TensorFiles.open(tmp_path)
    put(tmp_path, raw(A, bytes(8)))  # next to a complete file, parts are leftovers
    with pytest.raises(CheckpointError, match=r"00001-of-00002"):
        TensorFiles.open(tmp_path)


def test_whole_file_beside_parts(tmp_path: Path) -> None:
    put_parts(tmp_path)
    put(tmp_path, raw(A, bytes(8)))
    with pytest.raises(CheckpointError, match=r"'model\.safetensors', which .* does not name"):
        TensorFiles.open(tmp_path)


def test_two_indexes(tmp_path: Path) -> None:
    put_parts(tmp_path)
    put_parts(tmp_path, "model", ".index.json")
    with pytest.raises(CheckpointError, match="two indexes"):
        TensorFiles.open(tmp_path)


def test_two_families(tmp_path: Path) -> None:
    put(tmp_path, raw(A, bytes(8)))
    put(tmp_path, raw({"q": A["a"]}, bytes(8)), f"{QUANT}.safetensors")
    with pytest.raises(CheckpointError, match=rf"{QUANT}\* and model\*"):
        TensorFiles.open(tmp_path)
    (tmp_path / "quant_model_description.json").write_text("{}")
    assert TensorFiles.open(tmp_path).names() == ["q"]
    put(tmp_path, raw(A, bytes(8)), "quant_model_weights.safetensors")
    with pytest.raises(CheckpointError, match="several models"):
        TensorFiles.open(tmp_path)
