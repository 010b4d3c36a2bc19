"""Torch is held to one thread while kernels keep theirs, and gets its own back whatever happens."""

from threading import Thread

import pytest
import torch

from faquant.kernels import threads


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
