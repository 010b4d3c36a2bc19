"""Torch is held to one thread while kernels keep theirs, and gets its own back whatever happens."""

from pathlib import Path
from threading import Thread

import pytest
import torch

from faquant.kernels import _C, elementwise, threads

TASKS = Path("/proc/self/task")


def test_torch_gets_its_threads_back() -> None:
    torch.set_num_threads(3)
    assert threads.count() == 3
    with threads.torch_on_one():
        assert (torch.get_num_threads(), threads.count()) == (1, 3)
    assert (torch.get_num_threads(), threads.count()) == (3, 3)


def test_threads_that_begin_meanwhile_get_all_of_them_back() -> None:
    torch.set_num_threads(3)
    found: list[tuple[int, int]] = []

    def other() -> None:
        with threads.torch_on_one():
            found.append((torch.get_num_threads(), threads.count()))
        found.append((torch.get_num_threads(), threads.count()))

    with threads.torch_on_one():
        begun = Thread(target=other)
        begun.start()
        begun.join()
    assert found == [(1, 3), (3, 3)]
    assert (torch.get_num_threads(), threads.count()) == (3, 3)


def failing() -> None:
    with threads.torch_on_one():
        raise KeyError("any")


def test_torch_gets_its_threads_back_behind_an_error() -> None:
    torch.set_num_threads(2)
    with pytest.raises(KeyError):
        failing()
    assert (torch.get_num_threads(), threads.count()) == (2, 2)


def processor_time() -> dict[str, int]:
    """What each thread of this process has computed, in ticks."""
    fields = {stat.parent.name: stat.read_text().rpartition(")")[2].split() for stat in TASKS.glob("*/stat")}
    return {thread: int(values[11]) + int(values[12]) for thread, values in fields.items()}


def test_threads_that_no_call_wants_sleep() -> None:
    gate = torch.ones(1 << 19)
    out = torch.empty_like(gate)

    def call(threads: int) -> None:
        _C.silu_times(gate.data_ptr(), gate.data_ptr(), len(gate), out.data_ptr(), threads, None)

    call(8)
    before = processor_time()
    spent = [0]
    while max(spent) < 20:
        for _ in range(50):
            call(2)
        spent = sorted((ticks - before.get(thread, 0) for thread, ticks in processor_time().items()), reverse=True)
    assert sum(spent[2:]) < spent[0] / 2
    call(8)
    assert torch.equal(out, elementwise.silu_times(gate, gate))
