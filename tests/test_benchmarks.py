"""The benchmarks are run by hand; these tests check that they still work with the current code."""

import importlib.util
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize(
    "file", [file for file in FILES if not file.stem.startswith("run_")], ids=lambda file: file.stem
)
def test_what_a_benchmark_imports_is_there(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As python FILE has it: what pytest is told of other places does not count.
    monkeypatch.setattr(sys, "path", [str(file.parent), *(path for path in sys.path if Path(path).name != "examples")])
    for name in {path.stem for path in FILES} | {"demo_model"}:
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location(f"benchmark_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
