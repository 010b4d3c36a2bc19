"""How many threads the kernels use, and that unused threads sleep."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from faquant.kernels import _C, modules, threads
from faquant.kernels.pages import Int8Pages, Spans
from faquant.kernels.scheme import AttentionScheme

TASKS = Path("/proc/self/task")


def by_default(monkeypatch: pytest.MonkeyPatch, omp_num_threads: str | None = None) -> int:
    """The default count."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if omp_num_threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", omp_num_threads)
    threads.set_count(None)
    return threads.count()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root directory for the kernel's files about cores and limits: four CPUs with one core each."""
    monkeypatch.setattr(threads, "Path", lambda name: tmp_path / name.lstrip("/"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_count_that_is_set_holds_until_another_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (3, 1, 7):
        threads.set_count(count)
        assert threads.count() == count
    assert by_default(monkeypatch, "5") == 5
    threads.set_count(2)
    assert threads.count() == 2


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_that_is_not_positive_is_refused(count: int) -> None:
    threads.set_count(3)
    with pytest.raises(ValueError, match=f"at least one thread, not {count}"):
        threads.set_count(count)
    assert threads.count() == 3


def test_torch_s_threads_and_ours_are_set_apart() -> None:
    threads.set_count(3)
    torch.set_num_threads(2)
    x = torch.ones(1 << 16)
    modules.silu_times(x, x)
    assert (threads.count(), torch.get_num_threads()) == (3, 2)


@pytest.mark.parametrize(("asked", "expected"), [("3", 3), ("1", 1), ("6,2", 6)])
def test_omp_num_threads_is_the_default(asked: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_default(monkeypatch, asked) == expected


@pytest.mark.parametrize("nonsense", ["", "0", "-2", "many", "2.5", ",3"])
def test_an_omp_num_threads_that_is_no_number_counts_as_none(nonsense: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_default(monkeypatch, nonsense) == by_default(monkeypatch)


def test_the_environment_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_default(monkeypatch, "3") == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads.count() == 3


@pytest.mark.parametrize("asked", ["2", None])
def test_a_process_starts_with_its_default(asked: str | None) -> None:
    """In a process on one core, it is one."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if asked:
        environment["OMP_NUM_THREADS"] = asked
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    code += "from faquant.kernels import threads; print(threads.count())"
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == f"{asked or 1}\n"


def test_two_threads_of_a_core_count_once(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_default(monkeypatch) == 4, "of which nothing more is known"
    for cpu in range(4):
        siblings = "0,2\n" if cpu % 2 == 0 else "1,3\n"
        write(machine / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", siblings)
    assert by_default(monkeypatch) == 2


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("900000 100000", 4), ("?", 4)],
)
def test_a_container_s_limit_counts(limit: str, expected: int, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(machine / "sys/fs/cgroup/cpu.max", limit)
    assert by_default(monkeypatch) == expected


def processor_time() -> dict[str, int]:
    """The CPU time of each thread of this process, in ticks."""
    fields = {stat.parent.name: stat.read_text().rpartition(")")[2].split() for stat in TASKS.glob("*/stat")}
    return {thread: int(values[11]) + int(values[12]) for thread, values in fields.items()}


def test_threads_that_no_call_wants_sleep() -> None:
    gate = torch.ones(1 << 19)
    out = torch.empty_like(gate)

    def call(threads: int) -> None:
        _C.silu_times(gate, gate, out, threads, None)

    call(8)
    before = processor_time()
    spent = [0]
    while max(spent) < 20:
        for _ in range(50):
            call(2)
        spent = sorted((ticks - before.get(thread, 0) for thread, ticks in processor_time().items()), reverse=True)
    assert sum(spent[2:]) < spent[0] / 2
    call(8)
    assert torch.equal(out, modules.silu_times(gate, gate))


def test_64_threads_return_the_bits_of_one() -> None:
    """More than most machines have cores, and with enough work for each: the steps of a layer, again and again."""
    generator = torch.Generator().manual_seed(0)
    rows, heads, length = 96, 8, 4500
    x = torch.randn(rows, 512, generator=generator)
    weight = torch.randint(-127, 128, (4096, 512), dtype=torch.int8, generator=generator)
    linear = modules.DynamicLinear(weight.numpy(), torch.rand(4096, generator=generator).numpy())
    q, k, v = (torch.randn(length, heads, 64, generator=generator) for _ in range(3))
    table = torch.randperm(-(-length // 128), generator=generator)
    numbers = torch.arange(length)
    slots = table[numbers // 128] * 128 + numbers % 128
    spans = Spans.of([(1, length - 1, table), (rows, length - rows, table)])

    def layer(count: int) -> list[torch.Tensor]:
        threads.set_count(count)
        pages = Int8Pages(AttentionScheme(heads, heads, 64), len(table), 128)
        pages.append(k, v, slots, numbers)
        attended = pages.attend(torch.cat([q[-1:], q[-rows:]]), spans)
        return [attended, linear(x), modules.silu_times(x, x), *map(torch.as_tensor, pages.read_bytes(table, length))]

    expected = layer(1)
    for _ in range(5):
        assert all(map(torch.equal, layer(64), expected))
    assert sum(1 for _ in TASKS.iterdir()) >= 64
