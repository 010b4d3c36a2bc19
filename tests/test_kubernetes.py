"""The manifests in docs/kubernetes are valid, their parts fit together, and the sizes are those of `faquant plan`."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from faquant.cli.sizes import parse_size
from faquant.model.plan import WORKER_BYTES, plan
from oracles.configs import LLAMA_8B, LLAMA_70B, write_config

MANIFESTS = sorted((Path(__file__).parents[1] / "docs" / "kubernetes").glob("*.yaml"))
VERSIONS = ("1.31", kubernetes_validate.latest_version().removesuffix(".0"))
"""The oldest that docs/scale-out.md promises, and the newest that is known."""

SIZED_FOR = {"one_machine": LLAMA_8B, "two_machines": LLAMA_70B}
SERVER_BYTES = 2 * 700 << 20
"""vLLM's server and engine on the first machine (docs/scale-out.md)."""


def resources(manifest: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(manifest.read_text(encoding="utf-8")))


def pods(manifest: Path) -> list[dict[str, Any]]:
    """The template of each workload."""
    return [some["spec"]["template"] for some in resources(manifest) if some["kind"] != "Service"]


def test_there_are_manifests() -> None:
    assert {manifest.stem for manifest in MANIFESTS} == set(SIZED_FOR)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.stem)
def test_manifests_are_valid(manifest: Path, version: str) -> None:
    for resource in resources(manifest):
        assert kubernetes_validate.validate(resource, version, strict=True) == version


def test_a_field_that_does_not_exist_is_found() -> None:
    deployment = resources(MANIFESTS[0])[0]
    deployment["spec"]["template"]["spec"]["containers"][0]["args_"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="args_"):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.stem)
def test_names_refer_to_what_is_there(manifest: Path) -> None:
    """What the schemas cannot see: selectors, ports and volumes."""
    for resource in resources(manifest):
        spec = resource["spec"]
        if resource["kind"] == "Service":
            (chosen,) = [pod for pod in pods(manifest) if spec["selector"].items() <= pod["metadata"]["labels"].items()]
            named = {port["name"] for port in chosen["spec"]["containers"][0]["ports"]}
            assert {port["targetPort"] for port in spec.get("ports", [])} <= named
        else:
            assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    for pod in pods(manifest):
        (container,) = pod["spec"]["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.stem)
def test_the_memory_suffices(manifest: Path, tmp_path: Path) -> None:
    """For weights, cache, a step, vLLM's processes and shared memory, and not for twice as much."""
    write_config(SIZED_FOR[manifest.stem], tmp_path)
    for pod in pods(manifest):
        container = pod["spec"]["containers"][0]
        flags = dict(flag.removeprefix("--").split("=") for flag in container["args"] if "=" in flag)
        ranks = int(flags.get("tensor-parallel-size", 1))
        made = plan(
            tmp_path, None, int(flags["max-num-batched-tokens"]), int(flags["max-num-seqs"]), tensor_parallel=ranks
        )
        tokens = parse_size(f"{flags['kv-cache-memory-bytes']}iB") // made.ours.kv_bytes_per_token
        assert tokens >= made.config.max_position
        shared = next(some["emptyDir"] for some in pod["spec"]["volumes"] if some["name"] == "shared-memory")
        rank = made.memory_for(made.ours, tokens) - made.program_bytes + WORKER_BYTES
        needed = rank + SERVER_BYTES + parse_size(shared["sizeLimit"])
        limit = parse_size(container["resources"]["limits"]["memory"])
        assert needed <= limit <= 1.2 * needed
        assert container["resources"]["requests"] == container["resources"]["limits"]
