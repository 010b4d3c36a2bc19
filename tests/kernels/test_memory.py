"""Memory in huge pages: alignment, separate arrays, release."""

import gc
import mmap
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from faquant.kernels import memory
from faquant.kernels.memory import (
    CHUNK,
    HUGE_PAGE,
    Arena,
    bytes_in_huge_pages,
    huge,
    reserved,
    setting,
    works,
)
from faquant.kernels.pages import Int8Pages
from faquant.kernels.scheme import AttentionScheme


@pytest.mark.parametrize("size", [1, 4096, HUGE_PAGE - 1, HUGE_PAGE, HUGE_PAGE + 1, 5 * HUGE_PAGE])
def test_a_region_is_aligned_zero_and_writable(size: int) -> None:
    region = huge(size)
    assert region.ctypes.data % HUGE_PAGE == 0
    assert len(region) == size
    assert not region.any()
    region[:] = 7
    assert (region == 7).all()


def test_nothing_takes_nothing() -> None:
    assert len(huge(0)) == 0
    assert Arena().empty((0, 5), np.int8).shape == (0, 5)


def test_arrays_of_an_arena_do_not_overlap() -> None:
    arena = Arena()
    shapes = [(3, 5), (1,), (100, 1000), (CHUNK // 4 - 1,), (CHUNK // 4,), (7, CHUNK // 8), (2, 3, 4)]
    arrays = [arena.empty(shape, kind) for shape in shapes for kind in (np.int8, np.float32)]
    for number, array in enumerate(arrays):
        assert array.ctypes.data % 64 == 0
        array[...] = number
    for number, array in enumerate(arrays):
        assert (array == number).all()


def test_threads_do_not_get_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads run wherever the arena's state is read, where CPython itself seldom switches."""

    def used(arena: Arena) -> int:
        value: int = vars(arena)["used"]
        time.sleep(0)
        return value

    def set_used(arena: Arena, value: int) -> None:
        vars(arena)["used"] = value

    monkeypatch.setattr(Arena, "_used", property(used, set_used), raising=False)
    monkeypatch.setattr(memory, "CHUNK", 1 << 17)  # so that regions end meanwhile
    arena, sizes = Arena(), [1000 + 7 * number for number in range(400)]
    with ThreadPoolExecutor(8) as pool:
        arrays = list(pool.map(lambda size: arena.empty(size, np.int8), sizes))
    places = sorted((array.ctypes.data, array.nbytes) for array in arrays)
    assert all(place + size <= after for (place, size), (after, _) in pairwise(places))


def test_a_region_lives_as_long_as_its_arrays() -> None:
    arena = Arena()
    array = arena.empty(1000, np.int32)
    array[:] = np.arange(1000)
    del arena
    gc.collect()
    assert np.array_equal(array, np.arange(1000))


def test_huge_pages_are_got_where_the_system_gives_them_and_only_there() -> None:
    given = setting() in ("always", "madvise")
    assert works() == given
    before = bytes_in_huge_pages()
    region = huge(8 * HUGE_PAGE)
    region[:] = 1
    assert (bytes_in_huge_pages() - before >= 4 * HUGE_PAGE) == given


def test_systems_without_huge_pages_have_ordinary_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_SETTING", memory._SETTING / "none")
    monkeypatch.setattr(memory, "_PROC", memory._PROC / "none")
    monkeypatch.delattr("mmap.MADV_HUGEPAGE", raising=False)
    assert (setting(), bytes_in_huge_pages(), works()) == ("", 0, False)
    huge(HUGE_PAGE)[:] = 1


def test_weights_take_reserved_pages_and_give_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a simulated pool of ordinary pages, because few systems have reserved any."""
    kind = memory._MAP_HUGETLB | memory._MAP_HUGE_2MB
    taken: list[int] = []
    regions: list[weakref.ref[mmap.mmap]] = []

    class Pool(mmap.mmap):
        """A mapping of the pool, which counts once it is filled."""

        def __new__(cls, file: int, size: int, flags: int) -> "Pool":
            assert flags & kind == kind
            return super().__new__(cls, file, size, flags & ~kind)

        def madvise(self, option: int, start: int = 0, length: int = 0) -> None:
            assert option == memory._MADV_POPULATE_WRITE
            taken.append(len(self))
            regions.append(weakref.ref(self))

    monkeypatch.setattr(memory, "free_reserved", lambda: 1 << 30)
    monkeypatch.setattr("mmap.mmap", Pool)
    arena = Arena()
    arrays = [arena.empty(size, np.int8) for size in (1000, 5000, CHUNK // 4 + 1, 3000)]
    assert taken == [CHUNK, CHUNK // 4 + HUGE_PAGE]
    for number, array in enumerate(arrays):
        assert not array.any()
        array[:] = number
    assert all((array == number).all() for number, array in enumerate(arrays))
    assert all(region() is not None for region in regions)
    del arena, arrays, array
    gc.collect()
    assert not any(region() is not None for region in regions), "they are given back"


@pytest.mark.parametrize("fails", ["no pool", "mmap", "populate"])
def test_without_reserved_pages_weights_take_others(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """A pool that is too small, used up meanwhile, or that the container may not use."""
    plain = mmap.mmap

    class Refusing:
        """A mapping that cannot be filled."""

        def __init__(self, file: int, size: int, flags: int) -> None:
            if fails == "mmap":
                raise OSError(12, "Cannot allocate memory")

        def madvise(self, option: int) -> None:
            raise OSError(14, "Bad address")

        def close(self) -> None:
            closed.append(True)

    def mapping(file: int, size: int, flags: int) -> object:
        return Refusing(file, size, flags) if flags & memory._MAP_HUGETLB else plain(file, size, flags)

    closed: list[bool] = []
    monkeypatch.setattr(memory, "free_reserved", lambda: 0 if fails == "no pool" else 1 << 40)
    monkeypatch.setattr("mmap.mmap", mapping)
    assert reserved(CHUNK) is None
    Arena().empty(1000, np.int8)[:] = 1
    assert bool(closed) == (fails == "populate")


@pytest.mark.parametrize("num_pages", [1, 3, 2048])
def test_the_cache_starts_on_a_cache_line(num_pages: int) -> None:
    pages = Int8Pages(AttentionScheme(2, 2, 80), num_pages, 128)
    assert all(array.ctypes.data % 64 == 0 for array in (pages.k, pages.v, pages.k_scale, pages.v_scale))


def test_the_cache_takes_memory_when_it_is_written() -> None:
    """Up to the parts of its regions that the test writes, in huge pages."""
    before = resident()
    pages = Int8Pages(AttentionScheme(8, 8, 128), 2048, 128)
    assert pages.k.nbytes == 256 << 20
    assert resident() - before < 16 << 20
    pages.k[7], pages.v[9] = 1, 1
    assert resident() - before < 32 << 20


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
