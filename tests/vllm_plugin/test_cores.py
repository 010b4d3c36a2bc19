"""A worker's kernels use the cores that vLLM has given it."""

import os
import subprocess
import sys

import pytest

from faquant.vllm.cores import bound_cores

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="vLLM binds cores on Linux only")

NAMES = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES", "OMP_NUM_THREADS")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GOMP_CPU_AFFINITY", "2 3 12"),
        ("KMP_AFFINITY", "granularity=fine,explicit,proclist=[2,3,12]"),
        ("OMP_PLACES", "{2,3,12}"),
    ],
)
def test_cores_that_vllm_has_bound(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in NAMES:
        monkeypatch.delenv(each, raising=False)
    assert bound_cores() == set()
    monkeypatch.setenv(name, value)
    assert bound_cores() == {2, 3, 12}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GOMP_CPU_AFFINITY", "0-3"),
        ("GOMP_CPU_AFFINITY", "0 2-3"),
        ("GOMP_CPU_AFFINITY", "0-8:2"),
        ("GOMP_CPU_AFFINITY", "0,2"),
        ("KMP_AFFINITY", "compact"),
        ("KMP_AFFINITY", "granularity=fine,proclist=[0-3],explicit"),
        ("OMP_PLACES", "{0},{1}"),
        ("OMP_PLACES", "{0:4}"),
        ("OMP_PLACES", "cores"),
    ],
)
def test_a_user_s_own_binding_is_not_vllm_s(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in NAMES:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, value)
    assert bound_cores() == set()


def used(**variables: str) -> list[str]:
    """The cores of the main thread, and the numbers of threads of the kernels and of torch, in a process of its own in
    which OpenMP had bound the main thread to one core."""
    program = """
import os, torch
from faquant.kernels import threads
from faquant.vllm.cores import use_cores

cores = sorted(os.sched_getaffinity(0))
torch.set_num_threads(len(cores))
if "GOMP_CPU_AFFINITY" in os.environ:
    os.sched_setaffinity(0, cores[:1])
use_cores(2)
print(len(os.sched_getaffinity(0)), threads.count(), torch.get_num_threads())
"""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | variables
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return ended.stdout.split()


def test_bound_cores_are_used_again() -> None:
    """All of them, though OpenMP has bound the main thread, whose cores the kernels' threads inherit, to the first."""
    cores = sorted(os.sched_getaffinity(0))
    bound, threads, torchs = used(GOMP_CPU_AFFINITY=" ".join(map(str, cores)), OMP_NUM_THREADS=str(len(cores)))
    assert (int(bound), int(threads), int(torchs)) == (len(cores), len(cores), 1)


def test_workers_share_cores_that_are_not_bound() -> None:
    every = subprocess.run(
        [sys.executable, "-c", "from faquant.kernels import threads; print(threads.count())"],
        env={name: value for name, value in os.environ.items() if name not in NAMES},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(used()[1]) == max(1, int(every.stdout) // 2)
    assert used(OMP_NUM_THREADS="3")[1] == "3"
