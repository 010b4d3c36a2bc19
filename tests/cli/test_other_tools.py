"""The commands on checkpoints of other tools, which have float side files of the same tiny model."""

import json
import shutil
from pathlib import Path

import pytest

from faquant.cli.main import run
from faquant.formats import open_checkpoint
from oracles.interop import DATA, Tensors, edited

PROMPTS = [list(range(1, 40)), list(range(40, 100))]


@pytest.fixture
def calibration(tmp_path: Path) -> str:
    path = tmp_path / "calibration.jsonl"
    path.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in PROMPTS))
    return str(path)


def with_tokenizer(directory: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DATA / "float" / name, directory)
    return directory


@pytest.mark.parametrize("name", ["llmc-w8a8-kv", "quark-kv-tensor-asym", "modelopt-int8sq", "msms-fa3-kv-int8"])
def test_a_checkpoint_of_another_tool_runs_as_it_is(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = with_tokenizer(shutil.copytree(DATA / name, tmp_path / "model"))
    assert run(["inspect", str(source), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    opened = open_checkpoint(source)
    assert (seen["format"], seen["model_quant_type"]) == (opened.format, opened.quant_type)
    advice = [] if any(opened.schemes) else [f"faquant calibrate {source}"]
    assert len(seen["notes"]) == len(opened.notes) + len(advice)
    assert all(any(text in note for note in seen["notes"]) for text in [*opened.notes, *advice])
    assert seen["values_checked"]
    assert run(["generate", str(source), "a b c", "-n", "4"]) == 0
    assert run(["plan", str(source), "--memory", "1GiB"]) == 0


def test_inspect_says_what_is_not_obvious(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(DATA / "quark-kv-tensor-asym")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "format quark" in shown
    assert "scale of K per token, of V per head" in shown
    assert "K before RoPE" in shown


def test_tables_that_do_not_fit_are_found_and_replaced(
    tmp_path: Path, calibration: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As those of one short sample: K's scale in one layer is a third of what the texts need."""
    key = "model.layers.1.self_attn.k_scale"
    source = edited("llmc-w8a8-kv", tmp_path / "model", lambda tensors: tensors[key].div_(3))
    with_tokenizer(source)
    assert run(["inspect", str(source), "--check"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "in layer 1" in shown
    assert f"faquant calibrate {source} -o OUT" in shown
    out = tmp_path / "out"
    assert run(["calibrate", str(source), "-o", str(out), "--calibration", calibration]) == 0
    assert (out / "tokenizer.json").is_file()
    capsys.readouterr()
    assert run(["inspect", str(out), "--check"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "no table is calibrated" in shown
    assert run(["calibrate", str(source), "-o", str(out), "--calibration", calibration]) == 1
    assert "exists and is not empty" in capsys.readouterr().err


def test_tables_that_fit_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = "model.layers.{}.self_attn.{}_scale"
    keys = [key.format(layer, part) for layer in range(2) for part in "kv"]

    def wider(tensors: Tensors) -> None:
        for key in keys:
            tensors[key].mul_(3)

    source = edited("llmc-w8a8-kv", tmp_path / "model", wider)
    with_tokenizer(source)
    assert run(["inspect", str(source), "--check", "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["tables_fit"]
    assert [set(layer) for layer in seen["saturation"]] == [{"k", "v"}] * 2


def test_convert_to_faquant_and_back_to_a_runnable_directory(tmp_path: Path) -> None:
    source = with_tokenizer(shutil.copytree(DATA / "llmc-w8a8-kv", tmp_path / "model"))
    out = tmp_path / "out"
    assert run(["convert", str(source), "--to", "faquant", "-o", str(out)]) == 0
    assert run(["generate", str(out), "a b c", "-n", "4"]) == 0
    assert run(["convert", str(source), "--to", "mindie", "-o", str(tmp_path / "mindie")]) == 0
    assert run(["convert", str(source), "--to", "manual", "-o", str(tmp_path / "manual")]) == 1
    assert run(["convert", str(source), "--to", "faquant", "-o", str(tmp_path / "x"), "--dtype", "float16"]) == 2


def test_quantizing_and_measuring_beside_tables_of_another_tool(
    tmp_path: Path, calibration: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The float linears are the model; its tables of K and V count only when asked."""
    source = with_tokenizer(shutil.copytree(DATA / "llmc-kv-attn_head-sym-stat", tmp_path / "model"))
    text = tmp_path / "text.txt"
    text.write_text("a short text " * 40)
    for name, extra in (("own", []), ("kept", ["--keep-kv-tables"])):
        out = tmp_path / name
        arguments = ["quantize", str(source), "-o", str(out), "--calibration", calibration, "--no-evaluate", *extra]
        assert run(arguments) == 0
        assert run(["evaluate", str(out), "--against", str(source), "--text", str(text), "--quick"]) == 0
        assert "both" in capsys.readouterr().out
    assert run(["quantize", str(source), "-o", str(tmp_path / "x"), "--recipe", "auto", "--keep-kv-tables"]) == 2
    assert "choose a recipe" in capsys.readouterr().err
    assert run(["evaluate", str(source), "--against", str(DATA / "float"), "--text", str(text), "--quick"]) == 0


def test_an_output_without_the_tables_is_not_taken_for_one_with_them(tmp_path: Path, calibration: str) -> None:
    source = with_tokenizer(shutil.copytree(DATA / "llmc-kv-attn_head-sym-stat", tmp_path / "model"))
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"name": "linears", "attention": None}))
    line = ["quantize", str(source), "-o", str(tmp_path / "out"), "--recipe", str(recipe), "--calibration", calibration]
    assert run([*line, "--no-evaluate"]) == 0
    assert run([*line, "--keep-kv-tables"]) == 1, "the directory exists, and is another one"
    assert run([*line, "--keep-kv-tables", "--overwrite", "--no-evaluate"]) == 0
    assert any(open_checkpoint(tmp_path / "out").schemes)
