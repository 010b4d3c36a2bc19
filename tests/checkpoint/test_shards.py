"""Shards: written tensors can be read back, for any dtype and split."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from faquant.checkpoint import shards
from faquant.checkpoint.shards import ShardWriter, write_json
from faquant.checkpoint.tensors import TensorFiles
from faquant.errors import CheckpointError, OutputError
from oracles.tensor_files import is_same

STEM = "quant_model_weight_w8a8"
DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int8,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.uint8,
    torch.float64,
]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def check_round_trip(directory: Path, stem: str, tensors: dict[str, torch.Tensor], shard_bytes: int) -> list[str]:
    writer = ShardWriter(directory, stem, shard_bytes)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    read = TensorFiles.open(directory)
    assert set(read.names()) == set(tensors)
    for name, tensor in tensors.items():
        assert is_same(read.get(name), tensor)
    return names(directory)


def test_one_shard(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 5), "a": torch.arange(7, dtype=torch.int8), "c": torch.tensor(1.5)}
    assert check_round_trip(tmp_path, STEM, tensors, 1 << 30) == [f"{STEM}.safetensors"]
    path = tmp_path / f"{STEM}.safetensors"
    assert path.stat().st_size < 1000
    loaded = load_file(path)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_several_shards(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((32,), float(i)) for i in range(5)}
    tensors["large"] = torch.arange(1000)
    parts = [f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)]
    assert check_round_trip(tmp_path, "model", tensors, 256) == [*parts, "model.safetensors.index.json"]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 5 * 128 + 8000}
    assert index["weight_map"] == {
        "t0": parts[0],
        "t1": parts[0],
        "t2": parts[1],
        "t3": parts[1],
        "t4": parts[2],
        "large": parts[3],
    }
    for part in parts:
        assert sum(tensor.nbytes for tensor in load_file(tmp_path / part).values()) <= 256 or part == parts[3]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 40), max_size=3)), min_size=1, max_size=12
    ),
    shard_bytes=st.integers(1, 20_000),
    compact_below=st.sampled_from([0, 1 << 20]),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[tuple[torch.dtype, list[int]]],
    shard_bytes: int,
    compact_below: int,
) -> None:
    directory = tmp_path_factory.mktemp("shards")
    tensors = {f"t{i}": torch.randint(0, 2, shape).to(dtype) for i, (dtype, shape) in enumerate(sizes)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "COMPACT_BELOW", compact_below)
        check_round_trip(directory, STEM, tensors, shard_bytes)
    for path in directory.glob("*.safetensors"):
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        assert (length + 8) % 64 == 0
        for name, info in json.loads(content[8 : 8 + length]).items():
            if name != "__metadata__":
                assert info["data_offsets"][0] % tensors[name].element_size() == 0


def test_views_and_later_changes(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    parameter = torch.nn.Parameter(torch.ones(3))
    expected = {"t": base.t().clone(), "expanded": torch.ones(1).expand(5).clone(), "p": torch.ones(3)}
    with ShardWriter(tmp_path, "model") as writer:
        writer.add("t", base.t())
        writer.add("expanded", torch.ones(1).expand(5))
        writer.add("p", parameter)
        with torch.no_grad():
            base.zero_()
            parameter.zero_()
    read = TensorFiles.open(tmp_path)
    assert all(is_same(read.get(name), tensor) for name, tensor in expected.items())


def test_header_room_starts_a_new_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "HEADER_SPACE", 1016)
    written = check_round_trip(tmp_path, "model", {f"t{i}": torch.ones(i) for i in range(30)}, 1 << 30)
    assert len(written) > 3


def test_what_a_writer_refuses(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "model")
    writer.add("a", torch.ones(1))
    for name, tensor in {
        "a": torch.ones(1),
        "complex": torch.ones(1, dtype=torch.complex64),
        "meta": torch.ones(1, device="meta"),
        "sparse": torch.ones(2, 2).to_sparse(),
        "__metadata__": torch.ones(1),
        "\ud800": torch.ones(1),
        "x" * (1 << 20): torch.ones(1),
    }.items():
        with pytest.raises(OutputError):
            writer.add(name, tensor)
    writer.close()
    writer.close()
    with pytest.raises(OutputError, match="after"):
        writer.add("b", torch.ones(1))
    assert TensorFiles.open(tmp_path).names() == ["a"]


def test_unfinished_writer_leaves_nothing_that_loads(tmp_path: Path) -> None:
    def fail() -> None:
        with ShardWriter(tmp_path, "model") as writer:
            writer.add("a", torch.ones(64))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with pytest.raises(CheckpointError, match="no weights"):
        TensorFiles.open(tmp_path)


def test_tensors_that_could_not_be_written_cannot_be_closed(tmp_path: Path) -> None:
    class Full:
        """A file on a disk that is full after its first write."""

        def __init__(self, file: Any) -> None:
            self.file, self.writes = file, 0

        def write(self, data: memoryview) -> int:
            self.writes += 1
            if self.writes > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self.file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    writer = ShardWriter(tmp_path, "model")
    writer._file = Full(writer._file)  # type: ignore[assignment]
    writer.add("a", torch.ones(64))
    with pytest.raises(OSError, match="No space"):
        writer.add("b", torch.ones(64))
    with pytest.raises(OutputError, match="cannot be completed"):
        writer.close()
    with pytest.raises(CheckpointError, match="no weights"):
        TensorFiles.open(tmp_path)


def test_write_json(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": "é", "a": [1]})
    assert (tmp_path / "x.json").read_bytes() == '{\n  "b": "é",\n  "a": [\n    1\n  ]\n}\n'.encode()
    for value in (float("nan"), {"x": object()}, "\ud800"):
        with pytest.raises(OutputError, match=r"y\.json"):
            write_json(tmp_path / "y.json", value)
    assert names(tmp_path) == ["x.json"]
