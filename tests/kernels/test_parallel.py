"""Pieces of work on several threads: order, errors, torch's settings."""

import threading
import time

import pytest
import torch

from faquant.kernels import parallel
from oracles.threads import set_threads


@pytest.mark.parametrize("threads", [1, 3])
def test_results_are_in_order_and_torch_has_one_thread(threads: int) -> None:
    set_threads(threads)
    items = list(range(20))
    assert parallel.map_in_order(lambda item: (item, torch.get_num_threads()), items) == [(i, 1) for i in items]
    assert parallel.map_in_order(lambda item: item, []) == []
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_in_order_is_raised_and_the_rest_is_dropped(threads: int) -> None:
    set_threads(threads)
    started: list[int] = []

    def fail(item: int) -> None:
        started.append(item)
        if item in (5, 7):
            raise ValueError(str(item))
        time.sleep(0.01 if item > 7 else 0)

    with pytest.raises(ValueError, match="5"):
        parallel.map_in_order(fail, list(range(200)))
    assert len(started) < 200
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("mode", [False, True])
def test_the_inference_mode_is_the_caller_s(mode: bool, threads: int) -> None:
    set_threads(threads)
    with torch.inference_mode(mode):
        assert parallel.map_in_order(lambda _: torch.zeros(1).is_inference(), list(range(4))) == [mode] * 4


@pytest.mark.parametrize(("at_once", "expected"), [(None, 4), (2, 2), (1, 1), (9, 4)])
def test_no_more_items_are_worked_on_than_asked_for(at_once: int | None, expected: int) -> None:
    """Items wait for one another until as many are there as expected, and a little longer."""
    set_threads(4)
    barrier = threading.Barrier(expected)
    lock, running, most = threading.Lock(), 0, 0

    def work(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        barrier.wait(timeout=60)
        time.sleep(0.01)
        with lock:
            running -= 1

    parallel.map_in_order(work, list(range(12)), at_once)
    assert most == expected


def test_blocks_cover_everything() -> None:
    assert parallel.blocks(5, 2) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert parallel.blocks(6, 4, 2) == [slice(2, 6)]
    assert parallel.blocks(0, 4) == []
