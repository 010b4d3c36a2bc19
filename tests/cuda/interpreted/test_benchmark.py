"""benchmarks/gpu.py in the interpreter: all of its sections run, and its checks of bits pass."""

import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.cuda

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu.py"
TIMES = {
    "decode": ("ours", "one_map", "sdpa", "converting"),
    "prefill": ("ours", "sdpa"),
    "linears": ("ours", "rounded", "bf16"),
    "head": ("ours", "bf16"),
    "step": ("ours", "bf16"),
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return import_module("gpu")


def test_every_section_finds_something(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("json", "markdown")}
    options = [f"--{name}={file}" for name, file in files.items()]
    ended = subprocess.run([sys.executable, SCRIPT, "--tiny", *options], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(files["json"].read_text(encoding="utf-8"))
    assert found["notes"] == []
    assert {row["result"] for row in found["tables"]["bits"]} == {"same"}
    for table, names in TIMES.items():
        assert all(row[name] > 0 for row in found["tables"][table] for name in names), table
    report = files["markdown"].read_text(encoding="utf-8")
    assert report in ended.stdout
    assert "| equal bits | – | – | – | – | yes |" in report
    assert "| prefill, × SDPA | 0.25 |" in report


def process_of(gpu: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, seconds: float) -> list[str]:
    """The notes after a process that runs this code, with at most so many seconds."""
    script = folder / "part.py"
    script.write_text(code, encoding="utf-8")
    monkeypatch.setattr(gpu, "__file__", str(script))
    file = folder / "results.jsonl"
    process = gpu.Process(["step"])
    process.start(file, time.time(), "full")
    process.end(gpu.Results(file, time.time()), time.time() + seconds)
    return gpu.read(file)["notes"]


def test_a_process_that_lost_the_gpu_is_started_again(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    code = f"""
with open({str(count)!r}, "a") as file:
    file.write("x")
    ended = 0 if file.tell() == 3 else 3
raise SystemExit(ended)
"""
    assert process_of(gpu, tmp_path, monkeypatch, code, 60.0) == []
    assert count.read_text() == "xxx"


def test_a_process_that_hangs_is_killed(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = process_of(gpu, tmp_path, monkeypatch, "import time; time.sleep(100)", 1.0)
    assert notes == ["The process of step was killed because it took too long."]


def test_rows_are_found_again_after_a_broken_line(gpu: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    gpu.Results(file, 0.0).row("decode", heads="9/3/64", context=1024, ours=0.5)
    with file.open("a", encoding="utf-8") as half:
        half.write('{"table": "decode", "row": {"hea\n')
    again = gpu.Results(file, 0.0)
    assert again.has("decode", heads="9/3/64", context=1024)
    assert not again.has("decode", heads="9/3/64", context=4096)
    assert not again.has("prefill", heads="9/3/64")
