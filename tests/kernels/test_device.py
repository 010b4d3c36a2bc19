"""The choice of a device, on machines without a GPU and with GPUs that cannot be used."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from faquant import LLM
from faquant.errors import FaquantError, UsageError
from faquant.kernels import backend, device
from faquant.kernels.backend import backend_for
from faquant.kernels.cpu import CpuBackend


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A file that says that there is a driver."""
    path = tmp_path / "version"
    path.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Tue Jan\nGCC version:  gcc 12.3.0\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(device, "_DRIVER_FILES", (str(path),))
    return path


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "_DRIVER_FILES", (str(tmp_path / "none"),))


def cuda(monkeypatch: pytest.MonkeyPatch, available: bool, capability: tuple[int, int] = (9, 0)) -> None:
    """torch with such a GPU, and Triton."""
    gpu = SimpleNamespace(
        is_available=lambda: available,
        get_device_capability=lambda: capability,
        get_device_name=lambda: "Tesla V100",
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="2.13.0", cuda=gpu))
    monkeypatch.setattr(device, "find_spec", lambda name: name)
    monkeypatch.setattr(device, "version", lambda name: "3.6.0")


@pytest.mark.usefixtures("no_driver")
def test_without_a_driver_auto_is_the_cpu_and_torch_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert device.chosen("auto") == "cpu"
    assert isinstance(backend_for("auto"), CpuBackend)


@pytest.mark.usefixtures("no_driver")
def test_cuda_without_a_driver_is_an_error_of_one_line_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        device.chosen("cuda")
    assert str(caught.value) == "There is no NVIDIA GPU here: its driver was not found. Use the device cpu."
    with pytest.raises(UsageError, match="one of auto, cpu, cuda, not 'tpu'"):
        LLM(tmp_path, device="tpu")


@pytest.mark.usefixtures("driver")
def test_a_gpu_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "find_spec", lambda name: None if name == "triton" else name)
    assert device.why_not() == "The GPU needs triton: pip install 'faquant[cuda]'."
    assert device.chosen("auto") == "cpu"


@pytest.mark.usefixtures("driver")
def test_an_older_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "find_spec", lambda name: name)
    monkeypatch.setattr(device, "version", lambda name: "3.2.0")
    assert device.why_not() == "The GPU needs Triton 3.6 or newer, not 3.2.0: pip install 'faquant[cuda]'."


def test_an_unknown_device() -> None:
    with pytest.raises(UsageError, match="device must be one of auto, cpu, cuda, not 'gpu'"):
        backend_for("gpu")


@pytest.mark.usefixtures("driver")
def test_a_build_of_torch_that_finds_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch, available=False)
    with pytest.raises(UsageError, match=r"torch 2\.13\.0 finds no GPU"):
        device.chosen("cuda")


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(("capability", "works"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_gpus_from_ampere_on(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], works: bool) -> None:
    cuda(monkeypatch, True, capability)
    assert device.chosen("auto") == ("cuda" if works else "cpu")
    if not works:
        with pytest.raises(UsageError, match=r"Tesla V100 has compute capability 7\.5, but the kernels need 8\.0"):
            device.chosen("cuda")


def test_the_driver_s_version(driver: Path) -> None:
    assert device.driver_version() == "570.86.15"
    driver.unlink()
    assert device.driver_version() == "unknown"


def test_a_gpu_that_fails_its_self_test(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def make(name: str) -> CpuBackend:
        if name == "cuda":
            raise FaquantError("The GPU's kernels failed the self-test (attention).")
        return CpuBackend()

    monkeypatch.setattr(backend, "chosen", lambda device: "cuda")
    monkeypatch.setattr(backend, "make_backend", make)
    assert isinstance(backend_for("auto"), CpuBackend)
    assert "failed the self-test (attention). The CPU is used." in caplog.text
    with pytest.raises(FaquantError, match="failed the self-test"):
        backend_for("cuda")
