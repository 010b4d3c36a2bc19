"""Imports: the order of the packages of src/faquant, and that serving does not need torch."""

import ast
import graphlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from oracles.tiny_tokenizer import write_tokenizer

SOURCE = Path(__file__).parents[1] / "src" / "faquant"
MADE = Path(__file__).parent / "data" / "made_at_cad73ab" / "default"

PACKAGES = [
    *("errors", "progress", "kernels", "checkpoint", "recipe", "formats", "model", "vllm", "quantization", "text"),
    *("structured", "sampling", "engine", "evaluation", "search", "bench", "server", "api", "__init__"),
    *("cli", "__main__"),
]
"""faquant's packages, from the bottom. A module imports only from its own package and from those before it."""
SERVER_PARTS = [
    *("config", "schema", "errors", "operate", "page", "http", "answer", "service", "api", "app", "run"),
    "__init__",
]
"""The same for faquant.server."""

WITHOUT_TORCH = """
import sys

sys.modules["torch"] = None
{}
"""


def test_no_package_imports_from_a_later_one() -> None:
    modules = imports()
    found = {name.partition(".")[0] for name in modules}
    assert found == set(PACKAGES), "every package must be in the list"
    assert upward(modules, PACKAGES) == []


def test_only_evaluation_through_vllm_imports_the_plugin_for_it() -> None:
    """vLLM finds it by the entry point, and nothing else may depend on vLLM."""

    def in_plugin(name: str) -> bool:
        return name.partition(".")[0] == "vllm"

    users = {name for name, used in imports().items() if any(in_plugin(other) for other in used)}
    assert {name for name in users if not in_plugin(name)} == {"evaluation.through_vllm"}


def test_within_the_server_no_part_imports_from_a_later_one() -> None:
    modules = {
        name.removeprefix("server."): {other.removeprefix("server.") for other in used if other.startswith("server.")}
        for name, used in imports().items()
        if name.startswith("server.")
    }
    assert {name.partition(".")[0] for name in modules} == set(SERVER_PARTS)
    assert upward(modules, SERVER_PARTS) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        graphlib.TopologicalSorter(imports()).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle: {' → '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize(
    "line",
    [
        "generate MODEL Hello --max-tokens 5",
        "generate MODEL Hello --chat --max-tokens 5 --temperature 1",
        "chat MODEL --max-tokens 5",
        "inspect MODEL",
        "inspect MODEL --check",
        "plan MODEL --memory 1GB",
        "doctor",
        "bench MODEL --prompt 20 --depths 16 --batches 2 --requests 2 --rounds 1",
    ],
)
def test_commands_that_run_a_model_need_no_torch(line: str, tmp_path: Path) -> None:
    model = shutil.copytree(MADE, tmp_path / "model")
    write_tokenizer(model)
    arguments = [str(model) if word == "MODEL" else word for word in line.split()]
    program = WITHOUT_TORCH.format(f"from faquant.cli.main import run\nsys.exit(run({['--debug', *arguments]!r}))")
    done = subprocess.run([sys.executable, "-c", program], input="Hello\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_server_and_what_programs_import_need_no_torch() -> None:
    program = WITHOUT_TORCH.format(
        """
import json
import faquant.server.app, faquant.server.run, faquant.cli.serve
from faquant import LLM, AsyncEngine, Completion, Engine, EngineConfig, FaquantError, Recipe, SamplingParams
from faquant import StructuredOutput
print(json.dumps(sorted(name for name, module in sys.modules.items() if module is not None)))
"""
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "faquant.server.api.chat" in loaded
    assert not loaded & {"transformers", "faquant.evaluation.measure", "faquant.kernels.torch_backend"}


def imports() -> dict[str, set[str]]:
    """The modules of faquant, without that prefix, and the modules that each one imports, including local and type
    imports."""
    paths = {_name(path): path for path in SOURCE.rglob("*.py")}
    assert len(paths) > 100
    return {name: set(_imported(name, path, paths)) for name, path in paths.items()}


def _name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts)


def _imported(name: str, path: Path, modules: dict[str, Path]) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = ("faquant", *name.split("."))[: -node.level] if node.level else ()
            start = (*home, *(node.module.split(".") if node.module else ()))
            targets = [(*start, alias.name) for alias in node.names]
        else:
            continue
        found += [_module(target[1:], modules) for target in targets if target[0] == "faquant"]
    return found


def _module(parts: tuple[str, ...], modules: dict[str, Path]) -> str:
    """The module named by `parts`, or the module that contains that name."""
    for end in (len(parts), len(parts) - 1):
        for name in (".".join(parts[:end]), ".".join((*parts[:end], "__init__"))):
            if name in modules:
                return name
    raise AssertionError(f"nothing is called {'.'.join(parts)}")


def upward(modules: dict[str, set[str]], order: list[str]) -> list[str]:
    """The imports from a package to a later one."""

    def place(name: str) -> int:
        return order.index(name.partition(".")[0])

    return [f"{name} imports {other}" for name, used in modules.items() for other in used if place(other) > place(name)]
