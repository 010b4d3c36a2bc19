"""benchmarks/gpu.py in the interpreter: all of its sections run, and its checks of bits pass."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cuda

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu.py"
TIMES = {
    "decode": ("ours", "sdpa", "converting"),
    "prefill": ("ours", "sdpa"),
    "linears": ("ours", "rounded", "bf16"),
    "head": ("ours", "bf16"),
    "step": ("ours", "bf16"),
}


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
