"""Memory in huge pages: packed weights, which every step reads from end to end, and the cache.

With pages of 4 KiB, that stream waits for the processor's page walks. Regions are aligned to 2 MiB and marked with
madvise(MADV_HUGEPAGE), which Linux heeds if transparent huge pages are set to `always` or `madvise`. Weights use pages
that the system has reserved (hugetlbfs) as long as there are some; the cache does not, because it should only take
memory that is written. Where neither exists, all of it is ordinary memory.
"""

import mmap
import os
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt

HUGE_PAGE = 2 << 20
CHUNK = 64 << 20
"""Small arrays share regions of this size."""
CACHE_LINE = 64
"""Bytes. All arrays start at a multiple of it."""
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_PROC = Path("/proc")
_RESERVED = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
# Linux's numbers; Python 3.11 has no names for them.
_MAP_HUGETLB, _MAP_HUGE_2MB, _MADV_POPULATE_WRITE = 0x40000, 21 << 26, 23
_COUNTED = ("AnonHugePages:", "Private_Hugetlb:")


class Arena:
    """Arrays in huge pages. A region is returned to the system when no array in it is used any more. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._region = np.empty(0, np.uint8)
        self._used = 0

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
        """A new array whose values are arbitrary."""
        kind, size = np.dtype(dtype), _size(shape, dtype)
        if size >= CHUNK // 4:
            return _region(size).view(kind).reshape(shape)
        with self._lock:
            if self._used + size > len(self._region):
                self._region, self._used = _region(CHUNK), 0
            begin = self._used
            self._used = -(-(begin + size) // CACHE_LINE) * CACHE_LINE
            return self._region[begin : begin + size].view(kind).reshape(shape)


def empty(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
    """A new array whose values are arbitrary, for the cache: large ones take huge pages, but only when written. All
    start on a cache line."""
    kind, size = np.dtype(dtype), _size(shape, dtype)
    if size < HUGE_PAGE:
        spare = np.empty(size + CACHE_LINE, np.uint8)
        begin = -spare.ctypes.data % CACHE_LINE
        return spare[begin : begin + size].view(kind).reshape(shape)
    return huge(size).view(kind).reshape(shape)


def _size(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> int:
    """Bytes of an array."""
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _whole_pages(size: int) -> int:
    """Bytes of the huge pages that hold `size` bytes."""
    return -(-size // HUGE_PAGE) * HUGE_PAGE


def _region(size: int) -> npt.NDArray[np.uint8]:
    found = reserved(size)
    return huge(size) if found is None else found


def reserved(size: int) -> npt.NDArray[np.uint8] | None:
    """`size` bytes of zeros in pages of hugetlbfs; None if the system has not reserved enough."""
    whole = _whole_pages(size)
    if free_reserved() < whole:
        return None
    try:
        region = mmap.mmap(-1, whole, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB | _MAP_HUGE_2MB)
    except OSError:
        return None
    try:
        # Takes the pages now: where a container may have none, the first write would end the process instead.
        region.madvise(_MADV_POPULATE_WRITE)
    except OSError:
        region.close()
        return None
    return np.frombuffer(region, np.uint8, size)


def huge(size: int) -> npt.NDArray[np.uint8]:
    """`size` bytes of zeros, aligned to huge pages."""
    if size == 0:
        return np.empty(0, np.uint8)
    whole = _whole_pages(size)
    region = mmap.mmap(-1, whole + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = np.frombuffer(region, np.uint8).ctypes.data
    begin = -address % HUGE_PAGE
    if hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE, 0, whole + HUGE_PAGE)
    return np.frombuffer(region, np.uint8, size, begin)


def setting() -> str:
    """The system's setting of transparent huge pages: `always`, `madvise` or `never`; empty if there is none."""
    try:
        return _SETTING.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return ""


def bytes_in_huge_pages(process: int | None = None) -> int:
    """How much of the memory of the process with this number (None: this one) the system holds in huge pages; 0 if it
    does not tell."""
    try:
        lines = (_PROC / str(process or "self") / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(_COUNTED))


def free_reserved() -> int:
    """Bytes of hugetlbfs pages of 2 MiB that nobody uses; 0 if the system has reserved none."""
    try:
        return int(_RESERVED.read_text()) * HUGE_PAGE
    except (OSError, ValueError):
        return 0


def works() -> bool:
    """Whether the system gives huge pages, by trying."""
    region = huge(4 * HUGE_PAGE)
    before = bytes_in_huge_pages()
    region[::4096] = 0
    return bytes_in_huge_pages() > before


def available_memory() -> int:
    """Bytes of memory that are available without swapping."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # not Linux: all physical memory
