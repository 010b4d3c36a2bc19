"""`faquant quantize` killed during its evaluation: the same command does only the rest."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from faquant.cli.main import run
from faquant.evaluation import kept, measure
from faquant.quantization import pipeline
from oracles.kills import STRIDE, counted, killed_at
from oracles.tiny_models import tiny_model
from oracles.tiny_tokenizer import VOCAB_SIZE, write_tokenizer

COMPLETE = "is complete; only the evaluation is missing"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "float"
    tiny_model("smollm", directory, vocab_size=VOCAB_SIZE, max_position_embeddings=1024)
    write_tokenizer(directory)
    (directory.parent / "own.txt").write_text("Calibrate on this. " * 20)
    (directory.parent / "other.txt").write_text("Calibrate on that. " * 20)
    return directory


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure little, and save every result at once."""
    monkeypatch.setattr(kept, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "QUICK", measure.Effort(window=64, text=64, noise=32, offset=0, long=0, needle=0))


def command(source: Path, out: Path, *more: str, calibration: str = "own") -> list[str]:
    return ["quantize", str(source), "-o", str(out), "--calibration", str(source.parent / f"{calibration}.txt"), *more]


def contents(directory: Path) -> dict[str, Any]:
    """All files, and the report without the name of the directory."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in directory.iterdir()}
    found["faquant_report.json"] = json.loads(found["faquant_report.json"])
    found["faquant_report.json"]["model"].pop("directory")
    return found | {"faquant_report.html": None}


def hidden(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.parent.iterdir() if path.name.startswith("."))


def interrupted(arguments: list[str], monkeypatch: pytest.MonkeyPatch, after: int = 2) -> None:
    """Leave the state of a command that was killed after this many layers were measured."""
    real = measure.NoiseMeter.look

    def look(self: measure.NoiseMeter, step: Any) -> None:
        if step.index == after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(measure.NoiseMeter, "look", look)
        assert killed_at(-1, lambda: run(arguments))


@pytest.mark.parametrize("recipe", ["default", "mindie"])
def test_killed_anywhere_the_command_ends_with_the_same_directory(recipe: str, source: Path, tmp_path: Path) -> None:
    assert run(command(source, tmp_path / "whole", "--recipe", recipe)) == 0
    expected = contents(tmp_path / "whole")
    number = tried = 0
    while True:
        number, tried = number + 3 * STRIDE, tried + 1
        out = tmp_path / f"out{number}"
        arguments = command(source, out, "--recipe", recipe)
        if not killed_at(number, lambda: run(arguments)):  # noqa: B023
            break
        if not (out / "faquant_report.html").exists():
            assert run(arguments) == 0, number
        assert contents(out) == expected, number
        assert run(arguments) != 0  # nothing is left to do
        assert hidden(out) == [], number
        shutil.rmtree(out)
    assert tried > 3


@pytest.mark.parametrize("more", [["--recipe", "default"], ["--recipe", "mindie"], ["--max-kl", "0.5"]], ids=str)
@pytest.mark.parametrize("overwrite", [False, True])
def test_only_the_missing_layers_are_measured(
    more: list[str],
    overwrite: bool,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    if overwrite:
        assert run(command(source, out, "--recipe", "static", "--no-evaluate")) == 0
        more = [*more, "--overwrite"]
    arguments = command(source, out, *more)
    interrupted(arguments, monkeypatch)
    assert hidden(out) == [".out.evaluation", ".out.made.json"]
    quantized = counted(pipeline, "quantize", monkeypatch)
    looked = counted(measure.NoiseMeter, "look", monkeypatch)
    capsys.readouterr()
    assert run(arguments) == 0
    shown = capsys.readouterr()
    assert f"{out} {COMPLETE}" in shown.err
    assert "KL" in shown.out
    assert (len(quantized), len(looked)) == (0, 1)
    assert (out / "faquant_report.html").exists()
    assert hidden(out) == []
    assert run(arguments) == (0 if overwrite else 1)
    assert len(quantized) == 1 or not overwrite


def test_a_directory_without_a_report_is_measured(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The state after --no-evaluate, and of a version that saved no note. A directory in msModelSlim's format does not
    record what it was made from."""
    for recipe, status in (("default", 0), ("mindie", 1)):
        out = tmp_path / recipe
        assert run(command(source, out, "--recipe", recipe, "--no-evaluate")) == 0
        assert hidden(out) == []
        assert run(command(source, out, "--recipe", recipe, "--no-evaluate")) == 1
        capsys.readouterr()
        assert run(command(source, out, "--recipe", recipe)) == status
        shown = capsys.readouterr().err
        assert (COMPLETE in shown) == (status == 0)
        assert ("is not empty" in shown) == (status == 1)
    quantized = counted(pipeline, "quantize", monkeypatch)
    (tmp_path / "default" / "faquant_report.html").unlink()
    assert run(command(source, tmp_path / "default", "--recipe", "default", "--overwrite")) == 0
    assert len(quantized) == 1, "--overwrite quantizes a finished directory again"


@pytest.mark.parametrize(
    "change", ["recipe", "calibration", "model", "bound", "another directory", "damaged", "restart", "version"]
)
def test_another_quantization_is_not_taken_for_the_same(
    change: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, out = tmp_path / "float", tmp_path / "out"
    shutil.copytree(source, mine)
    for name in ("own.txt", "other.txt"):
        shutil.copy(source.parent / name, tmp_path)
    recipe = "mindie" if change in ("another directory", "version") else "default"
    arguments = command(mine, out, "--recipe", recipe)
    interrupted(arguments, monkeypatch)
    if change == "recipe":
        arguments = command(mine, out, "--recipe", "static")
    elif change == "calibration":
        arguments = command(mine, out, calibration="other")
    elif change == "model":
        tiny_model("smollm", mine, vocab_size=VOCAB_SIZE, max_position_embeddings=1024, seed=1)
    elif change == "bound":
        arguments = command(mine, out, "--max-kl", "0.5")
    elif change == "another directory":
        shutil.rmtree(out)
        assert run(command(mine, out, "--recipe", recipe, "--no-evaluate", calibration="other")) == 0
    elif change == "damaged":
        (out / "config.json").write_text("{")
    elif change == "restart":
        arguments = [*arguments, "--restart"]
    else:
        monkeypatch.setattr("faquant.quantization.provenance.version", lambda name: "99")
    capsys.readouterr()
    assert run(arguments) == 1
    shown = capsys.readouterr().err
    assert COMPLETE not in shown
    assert "is not empty" in shown


def test_a_failed_evaluation_leaves_nothing(source: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(source, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    (tmp_path / "own.txt").write_text("")
    (tmp_path / "own.jsonl").write_text(json.dumps({"token_ids": list(range(60))}) + "\n")
    arguments = ["quantize", str(bare), "-o", str(tmp_path / "out"), "--calibration", str(tmp_path / "own.jsonl")]
    assert run(arguments) == 0
    assert hidden(tmp_path / "out") == []
