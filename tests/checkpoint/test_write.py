"""Writing: what was written reads back; what failed leaves nothing that loads."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from faquant.checkpoint import shards, write
from faquant.checkpoint.shards import ShardWriter, write_json
from faquant.checkpoint.tensors import TensorFiles
from faquant.checkpoint.write import copy_side_files, output_directory
from faquant.errors import CheckpointError, FaquantError, OutputError

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


def make_model(directory: Path, value: float = 0.0) -> Path:
    directory.mkdir()
    write_json(directory / "config.json", {"model_type": "llama"})
    with ShardWriter(directory, "model") as writer:
        writer.add("a", torch.full((3,), value))
    return directory


def check_round_trip(directory: Path, stem: str, tensors: dict[str, torch.Tensor], shard_bytes: int) -> list[str]:
    writer = ShardWriter(directory, stem, shard_bytes)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    read = TensorFiles.open(directory)
    assert set(read.names()) == set(tensors)
    for name, tensor in tensors.items():
        found = read.get(name)
        assert found.dtype == tensor.dtype
        assert found.shape == tensor.shape
        assert torch.equal(
            found.view(torch.uint8) if found.dim() else found, tensor.view(torch.uint8) if tensor.dim() else tensor
        )
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
    assert all(torch.equal(read.get(name), tensor) for name, tensor in expected.items())


def test_header_room_starts_a_new_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "HEADER_ROOM", 1016)
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


def test_output_directory(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    with output_directory(target) as partial:
        assert partial.parent == target.parent
        assert partial.name.startswith(".model.partial-")
        assert not target.exists()
        (partial / "file").write_text("x")
    assert names(target.parent) == ["model"]
    assert names(target) == ["file"]
    assert target.stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_relative_and_empty_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    with output_directory(Path("out")) as partial:
        (partial / "file").touch()
    assert names(tmp_path / "out") == ["file"]


def fail_inside(target: Path, error: BaseException, overwrite: bool = False) -> None:
    with output_directory(target, overwrite) as partial:
        (partial / "file").write_bytes(bytes(3 << 20))
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, CheckpointError, SystemExit])
def test_other_exceptions_pass_and_leave_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fail_inside(tmp_path / "out", error())
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
def test_os_errors_become_output_errors(tmp_path: Path, code: int) -> None:
    target = tmp_path / "out"
    with pytest.raises(OutputError, match=rf"{target} was not written: .*{os.strerror(code)}") as caught:
        fail_inside(target, OSError(code, os.strerror(code)))
    assert names(tmp_path) == []
    if code in (errno.ENOSPC, errno.EDQUOT):
        assert "after 3.0 MiB" in str(caught.value)
        assert "free on the disk" in str(caught.value)


def test_disk_full_names_what_an_interrupted_run_left(tmp_path: Path) -> None:
    (tmp_path / ".out.partial-1-00").mkdir()
    with pytest.raises(OutputError, match=r"\.out\.partial-1-00 is left over"), output_directory(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_too_little_room_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
    message = r"needs 2\.00 GiB, and .* has 5\.0 MiB free"
    with pytest.raises(OutputError, match=message), output_directory(tmp_path / "out", needed_bytes=2 << 30):
        pytest.fail("the block must not run")
    assert names(tmp_path) == []
    with output_directory(tmp_path / "out", needed_bytes=4 << 20):
        pass


def test_existing_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(target: Path, message: str, overwrite: bool) -> None:
        before = sorted(str(path) for path in tmp_path.rglob("*"))
        with pytest.raises(OutputError, match=message), output_directory(target, overwrite):
            pytest.fail("the block must not run")
        assert sorted(str(path) for path in tmp_path.rglob("*")) == before

    (tmp_path / "file").write_text("x")
    for overwrite in (False, True):
        check(tmp_path / "file", "not a directory", overwrite)
        check(tmp_path / "file" / "below", "cannot be written", overwrite)
        check(Path("/"), "mount point", overwrite)
    model = make_model(tmp_path / "model")
    check(model, "not empty.*ask to overwrite", False)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    check(tmp_path / "photos", "not a model directory", True)
    (tmp_path / "photos" / "config.json").write_text('{"name": "a web project"}')
    check(tmp_path / "photos", "not a model directory", True)
    (model / "sub").mkdir()
    monkeypatch.chdir(model / "sub")
    check(model, "current directory", True)


def test_overwrite(tmp_path: Path) -> None:
    target = make_model(tmp_path / "model", 1.0)
    with output_directory(target, overwrite=True) as partial:
        make_model(partial / "x", 2.0)  # the old one is there until the end, to read from
        assert TensorFiles.open(target).get("a").tolist() == [1.0] * 3
        for path in (partial / "x").iterdir():
            path.rename(partial / path.name)
        (partial / "x").rmdir()
    assert TensorFiles.open(target).get("a").tolist() == [2.0] * 3
    assert names(tmp_path) == ["model"]


def test_overwrite_through_a_symlink_keeps_the_link(tmp_path: Path) -> None:
    make_model(tmp_path / "model", 1.0)
    (tmp_path / "link").symlink_to("model")
    with output_directory(tmp_path / "link", overwrite=True) as partial:
        (partial / "file").touch()
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "model") == ["file"]


def test_failed_overwrite_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_model(tmp_path / "model", 1.0)
    with pytest.raises(OutputError):
        fail_inside(target, OSError(errno.ENOSPC, "full"), overwrite=True)
    rename = Path.rename

    def fail_last(self: Path, to: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_last)
    with pytest.raises(OutputError, match="Input/output"), output_directory(target, overwrite=True):
        pass
    assert TensorFiles.open(target).get("a").tolist() == [1.0] * 3
    assert names(tmp_path) == ["model"]


def test_target_that_appears_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(OutputError, match="not empty"), output_directory(target):
        make_model(target, 1.0)
    assert TensorFiles.open(target).get("a").tolist() == [1.0] * 3
    assert names(tmp_path) == ["model"]


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


WRITE = """
import resource, sys, time, torch
from pathlib import Path
from faquant.checkpoint.shards import ShardWriter
from faquant.checkpoint.write import output_directory
from faquant.errors import OutputError
limits, seconds = [int(text) for text in sys.argv[2].split()], float(sys.argv[3])
for limit in limits:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with output_directory(Path(sys.argv[1])) as partial, ShardWriter(partial, "model", 1 << 20) as writer:
            for i in range(40):
                writer.add(f"t{i}", torch.ones(64 << 10))
                print(i, flush=True)
                time.sleep(seconds)
    except OutputError as error:
        print("OutputError:", error, file=sys.stderr)
"""


def test_file_size_limit(tmp_path: Path) -> None:
    limits = "1000 1048576 1662976"  # in the first tensor, where the header ends, in the third tensor
    command = [sys.executable, "-c", WRITE, str(tmp_path / "out"), limits, "0"]
    errors = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stderr.splitlines()
    assert len(errors) == 3
    for error in errors:
        assert error.startswith("OutputError:")
        assert "File too large" in error
    assert names(tmp_path) == []


def test_read_only_place() -> None:
    # Not in tmp_path, which only its owner may enter: root may write anywhere, and so becomes somebody else.
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "place"
        place.mkdir(mode=0o555)
        Path(folder).chmod(0o755)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                with pytest.raises(OutputError, match="Permission denied"), output_directory(place / "out"):
                    pytest.fail("the block must not run")
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert list(place.iterdir()) == []


def test_killed_while_writing(tmp_path: Path) -> None:
    target = tmp_path / "out"
    command = [sys.executable, "-c", WRITE, str(target), "-1", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if int(line) == 20:
                process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not target.exists()
    (left,) = tmp_path.iterdir()
    assert len(names(left)) > 2
    with pytest.raises(FaquantError):
        TensorFiles.open(left)
    with output_directory(target) as partial:  # what is left over does not disturb the next run
        (partial / "file").touch()
    assert names(target) == ["file"]


def test_write_json(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": "é", "a": [1]})
    assert (tmp_path / "x.json").read_bytes() == '{\n  "b": "é",\n  "a": [\n    1\n  ]\n}\n'.encode()
    for value in (float("nan"), {"x": object()}, "\ud800"):
        with pytest.raises(OutputError, match=r"y\.json"):
            write_json(tmp_path / "y.json", value)
    assert names(tmp_path) == ["x.json"]


def test_copy_side_files(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    wanted = ["LICENSE", "LICENSE.txt", "NOTICE.md", "chat_template.jinja", "generation_config.json", "tokenizer.json"]
    unwanted = ["LICENSE.py", "NOTICE.pkl", "config.json", "modeling_x.py", "pytorch_model.bin", "model.safetensors"]
    for name in wanted + unwanted:
        (source / name).write_text(name)
        (source / name).chmod(0o400)
    (source / "LICENSES").mkdir()
    (source / "vocab.json").symlink_to("tokenizer.json")
    assert copy_side_files(source, target) == sorted([*wanted, "vocab.json"])
    assert names(target) == sorted([*wanted, "vocab.json"])
    assert (target / "vocab.json").read_text() == "tokenizer.json"
    assert not (target / "vocab.json").is_symlink()
    assert (target / "LICENSE").stat().st_mode & 0o200


def test_side_files_that_are_not_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (tmp_path / "secret").write_text("x")
    path = source / "tokenizer.json"
    path.symlink_to("../secret")
    with pytest.raises(CheckpointError, match="leads out"):
        copy_side_files(source, target)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="regular file"):
        copy_side_files(source, target)
    path.unlink()
    path.touch()
    os.truncate(path, 100 << 30)
    begin = time.monotonic()
    with pytest.raises(CheckpointError, match="larger than"):
        copy_side_files(source, target)
    assert time.monotonic() - begin < 2
    assert names(target) == []
