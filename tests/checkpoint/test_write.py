"""Writing: written directories can be read back; failures leave nothing that loads."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from faquant.checkpoint import write
from faquant.checkpoint.shards import ShardWriter, write_json
from faquant.checkpoint.tensors import TensorFiles
from faquant.checkpoint.write import output_directory
from faquant.errors import CheckpointError, FaquantError, OutputError


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def make_model(directory: Path, value: float = 0.0) -> Path:
    directory.mkdir()
    write_json(directory / "config.json", {"model_type": "llama"})
    with ShardWriter(directory, "model") as writer:
        writer.add("a", torch.full((3,), value))
    return directory


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
        assert "free on disk" in str(caught.value)


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
    check(model, "not empty.*overwrite it", False)
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
        make_model(partial / "x", 2.0)  # the old one exists until the end, for reading
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
    # Not in tmp_path, which only its owner can enter: root can write anywhere, so the test changes its user.
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
    with output_directory(target) as partial:  # leftovers do not disturb the next run
        (partial / "file").touch()
    assert names(target) == ["file"]
