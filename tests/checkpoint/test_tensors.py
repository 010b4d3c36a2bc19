"""TensorFiles: valid files load; hostile ones are refused quickly, and only with the documented errors."""

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from faquant.checkpoint import files as files_module
from faquant.checkpoint.tensors import MAPPED_BYTES, MAX_HEADER_BYTES, TensorFiles
from faquant.errors import CheckpointError, FaquantError, UnsupportedError
from oracles.tensor_files import QUANT, A, is_same, put, put_parts, raw

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def check_equal(tensors: TensorFiles, expected: dict[str, torch.Tensor]) -> None:
    assert set(tensors.names()) == set(expected)
    for name, tensor in expected.items():
        assert name in tensors
        assert tensors.shape(name) == tuple(tensor.shape)
        assert tensors.dtype(name) == str(tensor.dtype).removeprefix("torch.")
        assert is_same(tensors.get(name), tensor)
        assert is_same(tensors.read(name), tensor)
    assert tensors.total_bytes == sum(tensor.nbytes for tensor in expected.values())


@pytest.mark.parametrize(
    ("directory", "stem"),
    [
        ("float_float32", "model"),
        ("float_bfloat16", "model"),
        ("w8a8_fa_fp32_ascendV1", QUANT),
        ("w8a8_fa_bf16_ascendV1", QUANT),
    ],
)
def test_golden(directory: str, stem: str) -> None:
    tensors = TensorFiles.open(GOLDEN / directory)
    assert tensors.stem == stem
    check_equal(tensors, load_file(GOLDEN / directory / f"{stem}.safetensors"))


@pytest.mark.parametrize("stem", ["model", QUANT, f"{QUANT}_dynamic", "quant_model_weights"])
@pytest.mark.parametrize("index", [".safetensors.index.json", ".index.json"])
def test_parts(tmp_path: Path, stem: str, index: str) -> None:
    expected = put_parts(tmp_path, stem, index)
    check_equal(TensorFiles.open(tmp_path), expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.float64])
def test_dtypes_and_odd_alignment(tmp_path: Path, dtype: torch.dtype) -> None:
    # 3 bytes first, so that the next tensor is unaligned.
    size = torch.empty((), dtype=dtype).element_size()
    code = {1: "U8" if dtype == torch.uint8 else "BOOL", 2: "I16" if dtype == torch.int16 else "F16"}
    name = code.get(size, "I64" if dtype == torch.int64 else "F64")
    header = {
        "odd": {"dtype": "I8", "shape": [3], "data_offsets": [0, 3]},
        "t": {"dtype": name, "shape": [2, 2], "data_offsets": [3, 3 + 4 * size]},
    }
    expected = torch.tensor([[0, 1], [1, 0]], dtype=dtype)
    data = b"\1\2\3" + bytes(expected.view(torch.uint8).flatten().tolist())
    tensors = TensorFiles.open(put(tmp_path, raw(header, data)))
    assert is_same(tensors.get("t"), expected)
    assert is_same(tensors.read("t"), expected)
    assert tensors.get("odd").tolist() == [1, 2, 3]


def test_empty_tensor_and_scalar(tmp_path: Path) -> None:
    expected = {"empty": torch.empty(0, 4), "scalar": torch.tensor(3.0)}
    save_file(expected, tmp_path / "model.safetensors")
    check_equal(TensorFiles.open(tmp_path), expected)


@pytest.mark.parametrize("size", [4, MAPPED_BYTES])
def test_what_is_read_is_a_copy_and_what_is_got_cannot_be_changed(tmp_path: Path, size: int) -> None:
    save_file({"a": torch.zeros(size)}, tmp_path / "model.safetensors")
    tensors = TensorFiles.open(tmp_path)
    tensors.read("a").fill(7)
    with pytest.raises(ValueError, match="read-only"):
        tensors.get("a").fill(7)
    assert (tensors.get("a") == 0).all()
    assert (tensors.read("a") == 0).all()


def test_small_tensors_hold_no_file_open_and_a_large_one_as_long_as_it_lives(tmp_path: Path) -> None:
    expected = {f"small {i}": torch.randn(100) for i in range(9)} | {"large": torch.randn(MAPPED_BYTES // 2)}
    save_file(expected, tmp_path / "model.safetensors")
    tensors = TensorFiles.open(tmp_path)
    before = open_files()
    held = {name: tensors.get(name) for name in expected}
    assert all(is_same(held[name], tensor) for name, tensor in expected.items())
    assert open_files() == before + 1
    del held["large"]
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_absent_tensor(tmp_path: Path) -> None:
    tensors = TensorFiles.open(put(tmp_path, raw(A, bytes(8))))
    for ask in (tensors.get, tensors.read, tensors.shape, tensors.dtype):
        with pytest.raises(CheckpointError, match="tensor 'b' is missing from the 'model' files"):
            ask("b")
    assert "b" not in tensors


HOSTILE = {
    "empty": b"",
    "seven_bytes": bytes(7),
    "no_header": bytes(8),
    "header_beyond_file": struct.pack("<Q", 1 << 62) + b"{}",
    "header_negative": b"\xff" * 9,
    "truncated": raw(A, bytes(4)),
    "trailing": raw(A, bytes(12)),
    "overlap": raw({**A, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
    "same_bytes": raw({**A, "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "hole": raw({**A, "b": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}}, bytes(20)),
    "reversed": raw({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, bytes(8)),
    "wrong_shape": raw({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)),
    "negative_shape": raw({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, bytes(8)),
    "overflow": raw({"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 8]}}, bytes(8)),
    "overflow_times_zero": raw({"a": {"dtype": "F32", "shape": [0, 1 << 63], "data_offsets": [0, 0]}}),
    "huge_times_zero": raw({"a": {"dtype": "F32", "shape": [0, 1 << 62], "data_offsets": [0, 0]}}),
    "key_twice": raw(b"{%s,%s}" % ((json.dumps(A)[1:-1].encode(),) * 2), bytes(8)),
    "field_twice": raw(b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "unknown_dtype": raw({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "not_utf8": raw(b'{"\xff":1}'),
    "lone_surrogate": raw(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "list": raw(b"[]"),
    "nested_lists": raw(b"[" * 1_000_000),
    "nested_objects": raw(b'{"a":' * 500_000),
    "pickle": b"\x80\x04\x95" + bytes(100),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file(tmp_path: Path, name: str) -> None:
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        TensorFiles.open(put(tmp_path, HOSTILE[name]))
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 99_000_000, 50 << 30])
def test_sparse_file_with_a_large_header(tmp_path: Path, length: int) -> None:
    put(tmp_path, struct.pack("<Q", length) + b"{")
    os.truncate(tmp_path / "model.safetensors", 100 << 30)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="header"):
        TensorFiles.open(tmp_path)
    assert time.monotonic() - start < 2


def test_header_of_zeros_as_large_as_is_read(tmp_path: Path) -> None:
    put(tmp_path, struct.pack("<Q", MAX_HEADER_BYTES))
    os.truncate(tmp_path / "model.safetensors", 100 << 30)
    with pytest.raises(CheckpointError):
        TensorFiles.open(tmp_path)


def test_no_memory_for_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = TensorFiles.open(put(tmp_path, raw(A, bytes(8))))

    def refuse(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr(np, "empty", refuse)
    for ask in (tensors.get, tensors.read):
        with pytest.raises(CheckpointError, match="'a' of 8 bytes does not fit into memory"):
            ask("a")


def test_largest_header_that_is_read_is_quick(tmp_path: Path) -> None:
    entries = {f"model.layers.{i}.weight": {"dtype": "I8", "shape": [0], "data_offsets": [0, 0]} for i in range(48_000)}
    content = raw(entries)
    assert MAX_HEADER_BYTES * 0.9 < len(content) <= MAX_HEADER_BYTES
    assert len(TensorFiles.open(put(tmp_path, content))) == len(entries)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "C64", "U16", "U32", "U64"])
def test_unsupported_dtype(tmp_path: Path, dtype: str) -> None:
    size = 8 if dtype in ("C64", "U64") else 4 if dtype == "U32" else 2 if dtype == "U16" else 1
    header = {
        "odd": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * size]},
        "fine": {"dtype": "I8", "shape": [1], "data_offsets": [2 * size, 2 * size + 1]},
    }
    tensors = TensorFiles.open(put(tmp_path, raw(header, bytes(2 * size + 1))))
    for ask in (tensors.get, tensors.read, tensors.dtype):
        with pytest.raises(UnsupportedError, match=rf"model\.safetensors: tensor 'odd' has dtype {dtype}"):
            ask("odd")
    assert tensors.shape("odd") == (2,)
    assert tensors.get("fine").tolist() == [0]


def large(directory: Path) -> Path:
    """A file with one tensor `a`, which is mapped."""
    return put(
        directory, raw({"a": {"dtype": "F32", "shape": [1 << 19], "data_offsets": [0, 1 << 21]}}, bytes(1 << 21))
    )


@pytest.mark.parametrize("make", [lambda directory: put(directory, raw(A, bytes(8))), large])
def test_truncated_after_opening(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    tensors = TensorFiles.open(make(tmp_path))
    os.truncate(tmp_path / "model.safetensors", 20)
    for ask in (tensors.get, tensors.read):
        with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'a'.*changed"):
            ask("a")


@pytest.mark.parametrize("ask", [TensorFiles.get, TensorFiles.read])
@pytest.mark.parametrize("make", [lambda directory: put(directory, raw(A, bytes(8))), large])
def test_truncated_while_reading(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], Path],
    ask: Callable[[TensorFiles, str], object],
) -> None:
    tensors = TensorFiles.open(make(tmp_path))
    whole = os.fstat

    def truncate_next(descriptor: int) -> os.stat_result:
        status = whole(descriptor)
        os.truncate(tmp_path / "model.safetensors", 20)
        return status

    monkeypatch.setattr(os, "fstat", truncate_next)
    with pytest.raises(CheckpointError, match=r"tensor 'a' cannot be read: .*(ends too early|file size)"):
        ask(tensors, "a")


def test_removed_or_replaced_after_opening(tmp_path: Path) -> None:
    tensors = TensorFiles.open(put(tmp_path, raw(A, bytes(8))))
    path = tmp_path / "model.safetensors"
    path.unlink()
    for make in (lambda: None, lambda: os.mkfifo(path)):
        make()
        for ask in (tensors.get, tensors.read):
            with pytest.raises(CheckpointError, match="'a'"):
                ask("a")


def put_fifo(path: Path) -> None:
    os.mkfifo(path)


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def put_directory(path: Path) -> None:
    path.mkdir()


def put_loop(path: Path) -> None:
    path.symlink_to(path.name)


def put_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [put_fifo, put_device, put_directory, put_loop, put_dangling])
@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_no_regular_file(tmp_path: Path, make: Callable[[Path], None], name: str) -> None:
    make(tmp_path / name)
    with pytest.raises(CheckpointError, match=name):
        TensorFiles.open(tmp_path)


@pytest.mark.parametrize("make", [put_fifo, put_directory, put_dangling])
def test_part_is_no_regular_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    put_parts(tmp_path)
    part = tmp_path / "model-00002-of-00002.safetensors"
    part.unlink()
    make(part)
    with pytest.raises(CheckpointError, match=part.name):
        TensorFiles.open(tmp_path)


def test_symlink_out_of_the_directory(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    put(outside, raw(A, bytes(8)))
    (inside / "model.safetensors").symlink_to("../out/model.safetensors")
    with pytest.raises(CheckpointError, match="leads out"):
        TensorFiles.open(inside)


def test_symlink_inside_and_symlinked_directory(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    put(inside, raw(A, bytes(8)), "weights.data")
    (inside / "model.safetensors").symlink_to("weights.data")
    (tmp_path / "link").symlink_to("in")
    assert TensorFiles.open(tmp_path / "link").get("a").tolist() == [0, 0]


def test_hugging_face_cache(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    put(blobs, raw(A, bytes(8)), "0123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert TensorFiles.open(snapshot).names() == ["a"]
    (snapshot / "model.safetensors").unlink()
    put(tmp_path, raw(A, bytes(8)))
    (snapshot / "model.safetensors").symlink_to("../../../model.safetensors")
    with pytest.raises(CheckpointError, match="leads out"):
        TensorFiles.open(snapshot)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.pkl"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path, b"\x80\x04.", name)
    with pytest.raises(UnsupportedError, match=rf"{name}.*run code.*safetensors"):
        TensorFiles.open(tmp_path)


def test_pickles_beside_safetensors_are_ignored(tmp_path: Path) -> None:
    put(tmp_path, b"\x80\x04.", "pytorch_model.bin")
    assert TensorFiles.open(put(tmp_path, raw(A, bytes(8)))).names() == ["a"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weights"):
        TensorFiles.open(tmp_path)
    with pytest.raises(CheckpointError, match="No such file"):
        TensorFiles.open(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="Not a directory"):
        TensorFiles.open(tmp_path / "file")


def test_read_object_of_another_size(tmp_path: Path) -> None:
    put(tmp_path, b'{"a": 1}', "x.json")
    assert files_module.read_object(tmp_path, "x.json", limit=8) == {"a": 1}
    with pytest.raises(CheckpointError, match="larger than the limit of 7"):
        files_module.read_object(tmp_path, "x.json", limit=7)


SOUND = raw(
    {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        "b": {"dtype": "I8", "shape": [3], "data_offsets": [8, 11]},
        "c": {"dtype": "F16", "shape": [], "data_offsets": [11, 13]},
    },
    bytes(range(13)),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=4),
    length=st.integers(0, len(SOUND) + 4),
)
@example(flips=[], length=len(SOUND))
def test_damaged_file_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], length: int
) -> None:
    content = bytearray(SOUND)
    for position, value in flips:
        content[position] = value
    directory = tmp_path_factory.mktemp("damaged")
    put(directory, bytes(content[:length]).ljust(length, b"\0"))
    try:
        tensors = TensorFiles.open(directory)
        for name in tensors.names():
            assert tensors.get(name).shape == tensors.read(name).shape == tensors.shape(name)
    except FaquantError:
        assert length != len(SOUND) or bytes(content) != SOUND


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_noise_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.mktemp("noise")
    with pytest.raises(CheckpointError):
        TensorFiles.open(put(directory, content))
