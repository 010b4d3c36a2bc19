"""faquant doctor"""

import platform
import sys
from importlib import metadata
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .console import print_json

LIBRARIES = (
    "faquant",
    "torch",
    "triton",
    "safetensors",
    "tokenizers",
    "jinja2",
    "numpy",
    "pydantic",
    "typer",
    "rich",
    "gguf",
    "fastapi",
    "uvicorn",
)


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the CPU, the instruction sets and kernels in use, versions, and the results of the self-tests."""
    findings = examine()
    if json:
        print_json(findings)
    else:
        _print(findings)
    if not findings["healthy"]:
        sys.exit(1)


def examine() -> dict[str, Any]:
    """Everything that doctor reports, as JSON values. `healthy` is false if a self-test failed."""
    from ..kernels import isa as cpu
    from ..kernels import memory

    self_tests = cpu.self_test()
    gpu = examine_gpu()
    return {
        "cpu": cpu.cpu_name(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "features": cpu.cpu_features(),
        "instruction_sets": cpu.available_isas(),
        "instruction_set_in_use": cpu.selected_isa(),
        "huge_pages": {
            "setting": memory.setting(),
            "works": memory.works(),
            "free_reserved_bytes": memory.free_reserved(),
        },
        "self_tests": self_tests,
        "gpu": gpu,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}},
        "healthy": all(self_tests.values()) and all(gpu["self_tests"].values()),
    }


def examine_gpu() -> dict[str, Any]:
    """The GPU, its driver and its kernels' self-tests; or why it cannot be used."""
    from ..kernels import device

    if reason := device.why_not():
        return {"usable": False, "reason": reason, "self_tests": {}}
    import torch

    from ..kernels.cuda.backend import description
    from ..kernels.cuda.self_test import self_test

    gpu = torch.device("cpu" if device.interpreted() else "cuda")
    try:
        return {
            "usable": True,
            "name": description(gpu),
            "driver": device.driver_version(),
            "self_tests": self_test(gpu),
        }
    except Exception as error:  # whatever the driver or the compiler says, it is what the user wants to know
        return {"usable": False, "reason": f"The kernels cannot run: {error}", "self_tests": {}}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _print(findings: dict[str, Any]) -> None:
    table = Table(show_header=False)
    present = [name for name, there in findings["features"].items() if there]
    pages, gpu = findings["huge_pages"], findings["gpu"]
    tiles_refused = "amx_int8" in present and "amx_permitted" not in present
    rows = {
        "CPU": findings["cpu"],
        "system": findings["system"],
        "features": ", ".join(present) or "none of those used",
        "instruction sets": f"{', '.join(findings['instruction_sets'])}; in use: {findings['instruction_set_in_use']}",
        **({"AMX": "the operating system does not permit this process to use tiles"} if tiles_refused else {}),
        "huge pages": f"{'available' if pages['works'] else 'not available'}; setting: {pages['setting'] or 'none'}; "
        f"reserved (hugetlbfs): {pages['free_reserved_bytes']:,} bytes free",
        "GPU": gpu["name"] if gpu["usable"] else gpu["reason"],
        **({"GPU's driver": gpu["driver"]} if gpu["usable"] else {}),
        **{f"self-test, GPU, {name}": "passed" if ok else "FAILED" for name, ok in gpu["self_tests"].items()},
        **{f"self-test, {name}": "passed" if ok else "FAILED" for name, ok in findings["self_tests"].items()},
        **findings["versions"],
    }
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)
    if not findings["healthy"]:
        Console(stderr=True).print("A self-test failed. Results stay exact, but speed may suffer.")
