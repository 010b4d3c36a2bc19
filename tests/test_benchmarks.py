"""The benchmarks are run by hand; these tests check that they still work with the current code."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import pytest

from oracles.gguf_files import gguf_tensors
from oracles.tiny_models import tiny_model
from oracles.tiny_tokenizer import write_tokenizer

FOLDER = Path(__file__).parents[1] / "benchmarks"
FILES = sorted(FOLDER.glob("*.py"))


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports are as for `python FILE`: what pytest is told of other places does not count."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *(path for path in sys.path if Path(path).name != "examples")])
    for name in {path.stem for path in FILES} | {"demo_model"}:
        monkeypatch.delitem(sys.modules, name, raising=False)


def run(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "file", [file for file in FILES if not file.stem.startswith("run_")], ids=lambda file: file.stem
)
@pytest.mark.usefixtures("benchmarks")
def test_what_a_benchmark_imports_is_there(file: Path) -> None:
    run(file)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.usefixtures("benchmarks")
def test_gguf_files_for_peers(dtype: str, tmp_path: Path) -> None:
    from peers.gguf_file import write_q8_0

    directory, file = tmp_path / "model", tmp_path / "model.gguf"
    model = tiny_model(
        "smollm",
        directory,
        dtype,
        hidden_size=192,
        intermediate_size=64,
        head_dim=32,
        num_attention_heads=6,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        max_shard_size="100KB",
    )
    write_tokenizer(directory)
    write_q8_0(directory, file)
    expected = gguf_tensors(model.float())
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert set(tensors) == set(expected)
    for name, tensor in tensors.items():
        x = gguf.dequantize(tensor.data, tensor.tensor_type)
        exact = np.asarray(expected[name])
        assert x.shape == exact.shape
        if exact.ndim == 1:
            assert np.array_equal(x, exact)
        else:
            # Half a step of 1/127 of a block's largest value, and the rounding of the step to float16.
            assert np.abs(x - exact).max() <= np.abs(exact).max() / 225


@pytest.mark.usefixtures("benchmarks")
def test_share_of_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cpu_share

    def write(cpus: str, processes: dict[int, tuple[int, str]]) -> None:
        (tmp_path / "stat").write_text(cpus)
        for number, (parent, ticks) in processes.items():
            (tmp_path / str(number)).mkdir(exist_ok=True)
            # Fields 5 to 13 do not matter here.
            (tmp_path / str(number) / "stat").write_text(f"{number} (a) 1 (b) R {parent} {'0 ' * 9}{ticks} 20 0")

    monkeypatch.setattr(cpu_share, "PROC", tmp_path)
    monkeypatch.setattr("os.getpid", lambda: 7)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 2}, raising=False)
    assert cpu_share.CpuTimes.now() is None
    nines = " 9" * 10
    first = f"cpu {nines}\ncpu0 10 0 0 100 0 0 0 0 0 0\ncpu1{nines}\ncpu2 0 0 0 0 0 0 0 0 0 0\nintr 9 9\n"
    write(first, {1: (0, "50 50 50 50"), 7: (1, "10 0 0 0"), 8: (7, "5 0 0 0"), 9: (8, "1 1 1 1"), 10: (1, "3 3 3 3")})
    begin = cpu_share.CpuTimes.now()
    # 100 ticks more on each CPU; 30 + 40 of them busy. 9 has ended, and 8 waited for it.
    second = "cpu0 20 5 5 160 10 4 3 3 0 0\ncpu2 40 0 0 60 0 0 0 0 20 0\n"
    write(second, {7: (1, "20 10 0 0"), 8: (7, "6 1 2 2"), 10: (1, "90 9 9 9")})
    (tmp_path / "9" / "stat").unlink()
    end = cpu_share.CpuTimes.now()
    assert begin == cpu_share.CpuTimes(total=110, busy=10, own=19)
    assert end == cpu_share.CpuTimes(total=310, busy=80, own=41)
    assert cpu_share.share_of_others(begin, end) == (70 - 22) / 200
    assert np.isnan(cpu_share.share_of_others(None, end))


@pytest.mark.usefixtures("benchmarks")
def test_cases_and_figures_of_function_calling(tmp_path: Path) -> None:
    import function_calling

    data = tmp_path / "bfcl_eval" / "data"
    (data / "possible_answer").mkdir(parents=True)
    parameters = {
        "type": "dict",
        "properties": {
            "size": {"type": "float"},
            "tags": {"type": "array", "items": {"type": "any"}, "optional": True},
        },
        "required": ["size"],
    }
    function = {"name": "area.of", "description": "It.", "parameters": parameters}
    rows = [{"question": [[{"role": "user", "content": str(n)}]], "function": [function]} for n in range(9)]
    (data / "BFCL_v4_multiple.json").write_text("\n".join(map(json.dumps, rows)))
    answers = [{"ground_truth": [{"area.of": {"size": [n]}}]} for n in range(9)]
    (data / "possible_answer" / "BFCL_v4_multiple.json").write_text("\n".join(map(json.dumps, answers)))
    cases = function_calling.read_cases(tmp_path, "multiple", 3)
    assert [case.messages[0]["content"] for case in cases] == ["0", "3", "6"]
    assert cases[1].right == [{"area.of": {"size": [3]}}]
    assert cases[0].tools[0]["function"] == {
        "name": "area_of",
        "description": "It.",
        "parameters": {
            "type": "object",
            "properties": {"size": {"type": "number"}, "tags": {"type": "array", "items": {"type": "string"}}},
            "required": ["size"],
            "additionalProperties": False,
        },
    }
    texts = ['{"size": 3}', '{"size": "3"}', '{"size": 3']
    calls = [{"function": {"name": "area_of", "arguments": text}} for text in texts]
    assert function_calling.read_calls(cases[1], {"tool_calls": calls}) == (
        [{"area_of": {"size": 3}}, {"area_of": {"size": "3"}}, {"area_of": {}}],
        1,
    )
    assert function_calling.read_calls(cases[1], {"content": "No."}) == ([], 0)
