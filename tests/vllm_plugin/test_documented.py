"""What the documentation, the manifests and `faquant plan` pass to vLLM is what vLLM takes."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from faquant.cli.main import app as faquant
from faquant.cli.main import run
from faquant.model.ranks import layers_of
from oracles.configs import LLAMA_70B, write_config

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [page for page in (DOCS / "scale-out.md", DOCS / "vllm.md") if page.exists()]
MANIFESTS = sorted(DOCS.glob("kubernetes/*.yaml"))


@pytest.fixture(scope="module")
def parser() -> Any:
    """That of `vllm serve`."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser())


@pytest.fixture(scope="module")
def server(parser: Any) -> Any:
    """vLLM's server with a key, without an engine."""
    from vllm.entrypoints.launchers.app import build_app

    return build_app(parser.parse_args(["--api-key", "secret"]), ("generate",))


def check(parser: Any, arguments: list[str]) -> None:
    """Flags are spelt out, and values are allowed."""
    flags = {argument.partition("=")[0] for argument in arguments if argument.startswith("-")}
    assert flags - set(parser._option_string_actions) == set()
    parser.parse_args(arguments)


def commands(text: str) -> list[list[str]]:
    """The arguments of each `vllm serve`. A line that begins with blanks and a flag continues the one before."""
    found = re.findall(r"vllm serve ([^\n`#]+(?:\n +--[^\n`#]+)*)", text)
    return [[word for word in shlex.split(command) if word not in ("…", "\n")] for command in found]


def containers(manifest: Path) -> list[dict[str, Any]]:
    resources = yaml.safe_load_all(manifest.read_text(encoding="utf-8"))
    pods = [some["spec"]["template"]["spec"] for some in resources if some["kind"] != "Service"]
    return [container for pod in pods for container in pod["containers"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page(page: Path, parser: Any) -> None:
    found = commands(page.read_text(encoding="utf-8"))
    assert found
    for arguments in found:
        check(parser, arguments)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.stem)
def test_commands_of_a_manifest(manifest: Path, parser: Any) -> None:
    for container in containers(manifest):
        assert container["command"][:2] == ["vllm", "serve"]
        arguments = [*container["command"][2:], *container["args"]]
        check(parser, [argument.replace("$(NODE_RANK)", "1") for argument in arguments])


def test_the_command_of_plan(parser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(LLAMA_70B, tmp_path)
    ranks = ["--tensor-parallel", "8", "--pipeline-parallel", "2"]
    for memory in ("8GiB", "96GiB"):
        assert run(["plan", str(tmp_path), "--memory", memory, *ranks]) == 0
        (arguments,) = commands(capsys.readouterr().out)
        assert ("--max-model-len" in arguments) == (memory == "8GiB")
        check(parser, arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_in_prose(page: Path, parser: Any) -> None:
    """Are vLLM's or faquant's."""
    own = {
        flag
        for command in typer.main.get_command(faquant).commands.values()
        for some in command.params
        for flag in some.opts
    }
    named = set(re.findall(r"`(--?[a-z][a-z-]*)", page.read_text(encoding="utf-8")))
    assert named - own - set(parser._option_string_actions) == set()


@pytest.mark.parametrize("page", [*PAGES, *MANIFESTS], ids=lambda page: page.name)
def test_variables(page: Path) -> None:
    from vllm.envs import environment_variables

    named = set(re.findall(r"\bVLLM_\w+", page.read_text(encoding="utf-8")))
    assert named
    assert named - set(environment_variables) == set()


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.stem)
def test_probes_ask_a_path_of_the_server(manifest: Path, server: Any) -> None:
    paths = {route.path for route in server.routes if "GET" in (getattr(route, "methods", None) or ())}
    for container in containers(manifest):
        for name in ("startupProbe", "livenessProbe"):
            probe = container[name]
            if "exec" in probe:
                (path,) = re.findall(r"http://[\w-]+:8000(/\w+)", probe["exec"]["command"][-1])
            else:
                path = probe["httpGet"]["path"]
            assert path in paths


def test_the_key_guards_only_what_the_page_says(server: Any) -> None:
    from fastapi.testclient import TestClient

    client = TestClient(server, raise_server_exceptions=False)
    assert client.post("/v1/completions", json={}).status_code == 401
    for path in ("/invocations", "/tokenize"):
        assert client.post(path, json={}).status_code not in (401, 404)
    for path in ("/metrics", "/version"):
        assert client.get(path).status_code == 200


def test_settings_for_ray_serve_are_those_of_the_engine() -> None:
    """Ray refuses others, and gives the engine those of this name."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    (block,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "scale-out.md").read_text(encoding="utf-8"), re.DOTALL)
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for application in yaml.safe_load(block)["applications"]:
        for config in application["args"]["llm_configs"]:
            assert config["engine_kwargs"].keys() <= known


def test_vllm_runs_no_executor_of_ray_on_cpus() -> None:
    """As docs/scale-out.md says."""
    from vllm.platforms.cpu import CpuPlatform

    assert not CpuPlatform.ray_device_key


def test_layers_are_divided_as_vllm_divides_them() -> None:
    from vllm.distributed.utils import get_pp_indices

    for layers in (1, 2, 7, 24, 30, 32, 80, 126):
        for stages in range(1, min(layers, 20) + 1):
            for stage in range(stages):
                own = layers_of(layers, stage, stages)
                assert (own.start, own.stop) == get_pp_indices(layers, stage, stages)
