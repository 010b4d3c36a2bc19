"""Wrong use ends with an exit status and one clear message."""

import shutil
import time
from pathlib import Path

import pytest

from faquant.checkpoint.tensors import TensorFiles
from faquant.cli.main import run
from oracles.tiny_models import tiny_model
from oracles.tiny_tokenizer import VOCAB_SIZE, write_tokenizer

WRONG = {
    "no such model": (["quantize", "nowhere", "-o", "{out}"], 1, "nowhere"),
    "no such recipe": (["quantize", "{source}", "-o", "{out}", "--recipe", "best"], 2, "mindie"),
    "no such calibration": (["quantize", "{source}", "-o", "{out}", "--calibration", "x.txt"], 2, "x.txt"),
    "target exists": (["quantize", "{source}", "-o", "{quantized}"], 1, "overwrite"),
    "evaluating a float model": (["evaluate", "{source}", "--against", "{source}"], 2, "float model"),
    "evaluating against a quantized one": (["evaluate", "{quantized}", "--against", "{quantized}"], 2, "is quantized"),
    "no such text": (["evaluate", "{quantized}", "--against", "{source}", "--text", "x.txt"], 2, "x.txt"),
    "a device for vLLM": (
        ["evaluate", "{quantized}", "--against", "{source}", "--engine", "vllm", "--device", "cpu"],
        2,
        "--engine vllm, which chooses the device",
    ),
    "temperature below zero": (["generate", "{quantized}", "Hi", "--temperature", "-1"], 2, "temperature"),
    "more than the context": (["generate", "{quantized}", "Hi", "--max-tokens", "9999"], 2, "context"),
    "an invalid size": (["plan", "{quantized}", "--memory", "much"], 2, "much"),
    "ranks that do not divide the heads": (
        ["plan", "{quantized}", "--memory", "1GiB", "--tensor-parallel", "7"],
        1,
        "--tensor-parallel-size can be 1, 3, 9.",
    ),
    "no ranks": (["plan", "{quantized}", "--memory", "1GiB", "--pipeline-parallel", "0"], 2, "--pipeline-parallel"),
    "converting a float model": (["convert", "{source}", "--to", "mindie", "-o", "{out}"], 2, "float model"),
    "quantizing a GGUF file": (["quantize", "{gguf}", "-o", "{out}"], 2, "faquant convert {gguf} --to hf"),
    "evaluating against a GGUF file": (["evaluate", "{quantized}", "--against", "{gguf}"], 2, "convert {gguf}"),
    "converting a GGUF file for mindie": (["convert", "{gguf}", "--to", "mindie", "-o", "{out}"], 2, "--to hf"),
    "converting a directory to hf": (["convert", "{source}", "--to", "hf", "-o", "{out}"], 2, "GGUF"),
    "converting nothing to hf": (["convert", "none.gguf", "--to", "hf", "-o", "{out}"], 1, "none.gguf"),
    "a dtype for mindie": (
        ["convert", "{quantized}", "--to", "mindie", "-o", "{out}", "--dtype", "float16"],
        2,
        "--to hf",
    ),
    "report that cannot be written": (
        ["evaluate", "{quantized}", "--against", "{source}", "--json", "/nowhere/x"],
        2,
        "/nowhere",
    ),
    "writing over the source": (["quantize", "{source}", "-o", "{source}", "--overwrite"], 1, "source"),
    "no such command": (["fly"], 2, "fly"),
    "no such option": (["inspect", "{quantized}", "--wings"], 2, "wings"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_clear_paragraph(
    case: str, quantized: Path, source: Path, gguf_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, status, word = WRONG[case]
    places = {"out": tmp_path / "out", "source": source, "quantized": quantized, "gguf": gguf_file}
    started = time.monotonic()
    assert run([argument.format(**places) for argument in arguments]) == status
    # The promise is two seconds; a loaded machine gets more.
    assert time.monotonic() - started < 10
    message = capsys.readouterr().err
    assert word.format(**places) in message
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()


NEED_A_TOKENIZER = {
    "generate": ["generate", "{model}", "Hi"],
    "chat": ["chat", "{model}"],
    "serve": ["serve", "{model}", "--port", "0"],
    "bench": ["bench", "{model}"],
    "inspect": ["inspect", "{model}"],
    "quantize": ["quantize", "{model}", "-o", "{out}"],
    "quantize again": ["quantize", "{model}", "-o", "{quantized}"],
    "auto": ["quantize", "{model}", "-o", "{out}", "--recipe", "auto"],
    "evaluate": ["evaluate", "{quantized}", "--against", "{model}"],
}


@pytest.mark.parametrize("case", NEED_A_TOKENIZER)
def test_a_damaged_tokenizer_is_reported_before_any_weights_are_opened(
    case: str,
    source: Path,
    quantized: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = shutil.copytree(source, tmp_path / "model")
    (model / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes()[:-9])
    monkeypatch.setattr(TensorFiles, "open", lambda *_: pytest.fail("weights were opened"))
    places = {"model": model, "quantized": quantized, "out": tmp_path / "out"}
    assert run([argument.format(**places) for argument in NEED_A_TOKENIZER[case]]) == 1
    assert f"{model / 'tokenizer.json'} cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_directory_without_a_tokenizer_can_be_inspected(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(source, tmp_path / "model")
    (model / "tokenizer.json").unlink()
    assert run(["inspect", str(model)]) == 0
    assert "times as many tokens fit" in capsys.readouterr().out


def test_evaluating_against_another_model_is_refused(
    quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    tiny_model("smollm", other, seed=1, vocab_size=VOCAB_SIZE, max_position_embeddings=4096)
    write_tokenizer(other)
    assert run(["evaluate", str(quantized), "--against", str(other)]) == 2
    assert "the weights differ" in capsys.readouterr().err


def test_a_closed_standard_input_is_reported(
    quantized: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert run(["generate", str(quantized), "-"]) == 2
    assert "standard input is closed" in capsys.readouterr().err
