"""The commands: what they print, where, and with which exit status."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from faquant.cli import doctor
from faquant.cli.main import run
from faquant.cli.sizes import parse_size, show_size
from faquant.errors import UsageError
from faquant.kernels import device, isa

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def test_quantize_with_the_builtin_calibration_evaluates_at_the_end(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["quantize", str(source), "-o", str(out), "--recipe", "attention-only"]) == 0
    assert (out / "tokenizer.json").is_file()
    shown = capsys.readouterr()
    assert "attention" in shown.out
    assert str(out / "faquant_report.html") in shown.err
    assert "KL" in (out / "faquant_report.html").read_text()
    report = json.loads((out / "faquant_report.json").read_text())
    assert {"prose", "chinese", "code", "tools"} <= report["texts"].keys()
    assert report["offsets"]["offsets"] == [0, 896, 1920, 2944]
    assert len(report["layers"]) == report["model"]["layers"]
    assert report["texts"]["prose"]["variants"]["attention"]["kl_error"] > 0
    # A report does not keep the directory from being replaced, nor is one needed.
    again = ["quantize", str(source), "-o", str(out), "--recipe", "attention-only", "--overwrite", "--no-evaluate"]
    assert run(again) == 0
    assert not (out / "faquant_report.html").exists()
    assert f"faquant evaluate {out}" in capsys.readouterr().err


def test_a_directory_that_cannot_be_evaluated_is_complete(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, out, calibration = tmp_path / "bare", tmp_path / "out", tmp_path / "own.jsonl"
    shutil.copytree(source, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    calibration.write_text(json.dumps({"token_ids": list(range(60))}) + "\n")
    assert run(["quantize", str(bare), "-o", str(out), "--calibration", str(calibration)]) == 0
    assert "could not be evaluated" in capsys.readouterr().err
    assert (out / "config.json").is_file()
    assert not (out / "faquant_report.html").exists()


def test_evaluate_prints_a_table_and_writes_json(
    quantized: Path, source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    command = ["evaluate", str(quantized), "--against", str(source), "--text", str(text), "--json", str(report)]
    assert run([*command, "--max-tokens", "100"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("attention", "linears", "both", "own"))
    figures = json.loads(report.read_text())["texts"]["own"]["variants"]
    assert set(figures) == {"attention", "linears", "both"}
    assert figures["both"]["tokens"] == 100
    assert 0 < figures["both"]["kl_mean"] < 0.1
    assert json.loads((quantized / "faquant_report.json").read_text()) == json.loads(report.read_text())
    assert (quantized / "faquant_report.html").read_text().startswith("<!DOCTYPE html>")
    assert run([*command[:-1], "-", "--quick", "--no-report"]) == 0
    assert "texts" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--for-batch", "8"], "--for-batch needs --max-kl"),
        (["--max-kl", "0.1", "--for-batch", "0,8"], "numbers from 1 on"),
        (["--max-kl", "0.1", "--for-batch", "many"], "not 'many'"),
    ],
)
def test_quantize_refuses_wrong_batches(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(["quantize", str(source), "-o", str(tmp_path / "out"), *options]) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_evaluate_compares_tasks(
    quantized: Path,
    source: Path,
    text: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("faquant.evaluation.tasks.calls.MAX_TOKENS", 128)
    command = ["evaluate", str(quantized), "--against", str(source), "--text", str(text), "--quick"]
    assert run([*command, "--tasks", "calls", "--task-limit", "1"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("Tasks", "calls", "right call", "no call", "16", "difference"))
    rows = json.loads((quantized / "faquant_report.json").read_text())["tasks"]
    assert [row["part"] for row in rows] == ["", "", "one function", "4 functions", "no function fits"]
    page = (quantized / "faquant_report.html").read_text()
    assert "<h2>Tasks</h2>" in page
    assert "no function fits" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task-limit", "3"], "need --tasks"),
        (["--tasks", "calls,calls"], "Name each task once"),
        (["--tasks", ","], "Name each task once"),
        (["--tasks", "calls", "--engine", "vllm"], "faquant's engine"),
    ],
)
def test_evaluate_refuses_wrong_tasks(
    quantized: Path, source: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(["evaluate", str(quantized), "--against", str(source), *options]) != 0
    assert message in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_reported(
    quantized: Path, source: Path, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, *args: object, **options: object) -> int:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refused)
    command = ["evaluate", str(quantized), "--against", str(source), "--text", str(text), "--quick"]
    assert run(command) == 0
    shown = capsys.readouterr()
    assert "Read-only file system" in shown.err
    assert "--no-report" in shown.err
    assert "both" in shown.out
    assert not [path for path in quantized.iterdir() if "partial" in path.name]


def test_generate_is_the_same_twice_and_stops(quantized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for _ in range(2):
        options = ["--temperature", "1", "--seed", "7", "--max-tokens", "12"]
        assert run(["generate", str(quantized), "Hello", *options]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_chat_ends_with_its_input(
    quantized: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert run(["chat", str(quantized), "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out


def test_bench_prints_tables_and_writes_json(
    quantized: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "bench.json"
    small = ["--prompt", "40", "--depths", "8,100,99999", "--batches", "1,3", "--requests", "2", "--rounds", "1"]
    assert run(["bench", str(quantized), "--against", str(source), *small, "--json", str(figures)]) == 0
    printed, skipped = capsys.readouterr()
    assert "int8 cache holds" in printed
    assert "bfloat16 cache" in printed
    assert "99,999 tokens" in skipped
    found = json.loads(figures.read_text())
    assert [(case["depth"], case["sequences"]) for case in found["decode"]] == [(8, 1), (8, 3), (100, 1), (100, 3)]
    for case in (found["prefill"], *found["decode"]):
        assert set(case["tokens_per_second"]) == {"int8 cache", "bfloat16 cache", "float model"}
        assert min(case["tokens_per_second"].values()) > 0
    assert set(found["serve"]) == {"int8 cache", "bfloat16 cache"}
    sizes = found["cache_bytes_per_token"]
    assert sizes["bfloat16 cache"] == 2 * sizes["int8 cache"] * 16 / 18  # which pads its head_dim of 8, as int8 does
    assert run(["bench", str(source), *small, "--requests", "0", "--json", "-"]) == 0
    assert "serve" not in json.loads(capsys.readouterr().out)
    several = ["--prompt", "40", "--depths", "8", "--batches", "3", "--requests", "0", "--rounds", "1"]
    assert run(["bench", str(quantized), *several]) == 0
    assert "same memory.\n" in capsys.readouterr().out, "speeds are compared for one sequence only"
    for option in ("--depths", "--batches"):
        for wrong in ("", "1,", "0", "x", "-3", "9" * 30):
            assert run(["bench", str(source), option, wrong]) == 2
            assert option in capsys.readouterr().err


def test_inspect_counts_bytes_and_tokens(quantized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(quantized), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    layers, (_, kv_heads, dim) = seen["layers"], seen["heads"]
    assert dim == 8
    assert seen["kv_bytes_per_token"] == layers * kv_heads * (2 * 16 + 4), "channels are padded to 16"
    assert seen["kv_bytes_per_token_bf16"] == layers * kv_heads * 4 * dim
    weights = sum(seen["bytes_by_part"].values())
    assert weights < (quantized / "quant_model_weight_w8a8.safetensors").stat().st_size
    assert run(["inspect", str(quantized)]) == 0
    assert "times as many tokens fit" in capsys.readouterr().out


def test_a_shortened_context_is_explained(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever the context is shown, in errors too. The table of serve is in tests/server/test_serve.py."""
    directory = shutil.copytree(source, tmp_path / "long")
    config = json.loads((directory / "config.json").read_text())
    config["dual_chunk_attention_config"] = {"original_max_position_embeddings": 1024}
    (directory / "config.json").write_text(json.dumps(config))
    note = "4,096 need dual chunk attention, which faquant does not compute"
    for command, shown in {
        "inspect": f"context 1,024 tokens ({note});",
        "plan": f"Context: 1,024 tokens; {note}.",
    }.items():
        options = ["--memory", "1GiB"] if command == "plan" else []
        assert run([command, str(directory), *options]) == 0
        assert shown in capsys.readouterr().out
        assert run([command, str(directory), *options, "--json"]) == 0
        seen = json.loads(capsys.readouterr().out)
        assert (seen["max_position"], seen["context_note"]) == (1024, note)
    assert run(["serve", str(directory), "--max-model-len", "4096"]) == 2
    assert f"exceeds the model's context of 1024 tokens ({note})." in capsys.readouterr().err
    assert run(["generate", str(directory), "Hello", "--max-tokens", "2000"]) == 2
    assert f"context of 1024 tokens ({note})." in capsys.readouterr().err


def test_doctor_reports_passing_self_tests(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"]
    assert all(found["self_tests"].values())
    assert found["instruction_set_in_use"] in found["instruction_sets"]
    assert run(["doctor"]) == 0


@pytest.mark.parametrize("permitted", [False, True])
def test_doctor_says_that_tiles_are_refused(
    permitted: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isa, "cpu_features", lambda: {"amx_int8": True, "amx_permitted": permitted})
    assert run(["doctor"]) == 0
    assert ("permit" in capsys.readouterr().out.replace("amx_permitted", "")) != permitted


@pytest.mark.parametrize("passes", [False, True])
def test_doctor_tells_about_a_gpu(
    passes: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = {"attention": passes, "int8 linears": True}
    gpu = {"usable": True, "name": "NVIDIA H100", "driver": "570.86.15", "self_tests": tests}
    monkeypatch.setattr(doctor, "examine_gpu", lambda: gpu)
    assert run(["doctor"]) == (0 if passes else 1)
    shown = capsys.readouterr()
    assert "NVIDIA H100" in shown.out
    assert ("FAILED" in shown.out) == ("self-test failed" in shown.err) == (not passes)


@pytest.mark.parametrize(
    "command", [["generate", "Hello"], ["chat"], ["serve", "--port", "0"], ["bench"], ["evaluate", "--against", "x"]]
)
def test_a_gpu_that_is_not_there_is_told_in_one_line(
    command: list[str], quantized: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_DRIVER_FILES", ())
    assert run([command[0], str(quantized), *command[1:], "--device", "cuda"]) == 2
    told = capsys.readouterr().err.strip()
    assert told == "faquant: There is no NVIDIA GPU here: its driver was not found. Use the device cpu."


def test_convert_explains_what_mindie_cannot_compute(
    quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", str(quantized), "--to", "mindie", "-o", str(tmp_path / "x")]) == 1
    message = capsys.readouterr().err
    assert all(word in message for word in ("scale per token", "rotated", "--recipe mindie"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_convert_normalizes_every_spelling_to_msmodelslims(dtype: str, tmp_path: Path) -> None:
    golden = GOLDEN / f"w8a8_fa_{dtype}_ascendV1"
    respelled, out = tmp_path / "respelled", tmp_path / "out"
    shutil.copytree(golden, respelled)
    shutil.copy(GOLDEN / ("float_float32" if dtype == "fp32" else "float_bfloat16") / "config.json", respelled)
    weights, description = respelled / "quant_model_weight_w8a8.safetensors", "quant_model_description.json"
    tensors, types = load_file(weights), json.loads((respelled / description).read_text())
    for name in list(tensors):
        if ".fa_" in name and name.endswith("scale"):
            tensors[name] = tensors[name].repeat(1, 16)
        if ".fa_" in name and name.endswith("offset"):
            del tensors[name], types[name]
        if dtype == "fp32" and name.endswith("deq_scale"):
            tensors[name] = tensors[name].to(torch.int32).view(torch.float32)
    weights.unlink()
    save_file(tensors, respelled / "quant_model_weights.safetensors")
    (respelled / description).write_text(json.dumps(types))
    assert run(["convert", str(respelled), "--to", "mindie", "-o", str(out)]) == 0
    expected = load_file(golden / "quant_model_weight_w8a8.safetensors")
    written = load_file(out / "quant_model_weight_w8a8.safetensors")
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert written[name].dtype == tensor.dtype, name
        assert torch.equal(written[name], tensor), name
    assert json.loads((out / description).read_text()) == json.loads((golden / description).read_text())


def test_quantize_accepts_a_converted_gguf_file(
    gguf_file: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = str(tmp_path / "hf"), str(tmp_path / "out")
    assert run(["convert", str(gguf_file), "--to", "hf", "-o", source, "--dtype", "bfloat16"]) == 0
    shown = capsys.readouterr().err
    assert f"faquant quantize {source}" in shown
    assert "sliding_window (of Mistral)" in shown
    assert f"instead of {source}/config.json" in shown
    assert {tensor.dtype for tensor in load_file(tmp_path / "hf" / "model.safetensors").values()} == {torch.bfloat16}
    assert run(["convert", str(gguf_file), "--to", "hf", "-o", source]) == 1
    assert run(["convert", str(gguf_file), "--to", "hf", "-o", source, "--overwrite"]) == 0
    assert run(["quantize", source, "-o", out, "--calibration", str(text), "--no-evaluate"]) == 0
    assert run(["generate", out, "Hello", "--max-tokens", "3", "--temperature", "0"]) == 0


def test_plan_says_what_fits(quantized: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for directory, more in ((quantized, []), (source, ["--recipe", "static"])):
        assert run(["plan", str(directory), *more, "--memory", "2GiB", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["footprints"]
        (ours,) = found.keys() - {"bfloat16"}
        assert ours == ("default" if directory is quantized else "static")
        assert found[ours]["tokens"] == found[ours]["kv_cache_memory"] // found[ours]["kv_bytes_per_token"] > 0
        assert run(["plan", str(directory), *more, "--memory", "2GiB"]) == 0
        printed = capsys.readouterr().out
        assert f"{found[ours]['tokens']:,}" in printed
        assert "--kv-cache-memory 1." in printed
    assert run(["plan", str(source), "--memory", "1MiB"]) == 0
    assert "1MiB is too little" in capsys.readouterr().out
    assert run(["plan", str(quantized), "--memory", "1GiB", "--recipe", "static"]) == 2
    assert "quantized already" in capsys.readouterr().err


def test_plan_says_what_a_rank_of_vllm_holds(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With vLLM's command, whose limits are those of the plan. vLLM refuses a context that does not fit."""
    command = ["plan", str(source), "--tensor-parallel", "3", "--pipeline-parallel-size", "2", "--max-num-seqs", "8"]
    memory, context = 2 << 30, ""
    for tokens in (None, 100):
        assert run([*command, "--memory", str(memory), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["tensor_parallel_size"], found["pipeline_parallel_size"]) == (3, 2)
        ours = found["footprints"]["default"]
        assert ours["tokens"] == tokens or (tokens is None and ours["tokens"] >= found["max_position"])
        assert run([*command, "--memory", str(memory)]) == 0
        printed = capsys.readouterr().out
        assert "one of 6 ranks" in printed
        assert f"{ours['tokens']:,}" in printed
        assert printed.endswith(
            "vllm serve OUT --tensor-parallel-size 3 --pipeline-parallel-size 2 --max-num-seqs 8 "
            f"--max-num-batched-tokens 512 --kv-cache-memory-bytes {ours['kv_cache_memory']}{context}\n"
        )
        memory, context = memory - ours["kv_cache_memory"] + 100 * ours["kv_bytes_per_token"], " --max-model-len auto"


def test_sizes() -> None:
    assert show_size(3 << 29) == "1.5GiB"
    assert show_size(1000) == "1000B"
    for size in (1, 1024, 999_999, 123_456_789_012):
        assert 0.95 * size <= parse_size(show_size(size)) <= size
    assert parse_size("24GiB") == 24 << 30
    assert parse_size("1.5 kB") == 1500
    assert parse_size("1000") == 1000
    for wrong in ("", "GiB", "-1GiB", "1e9", "9" * 30):
        with pytest.raises(UsageError):
            parse_size(wrong)
