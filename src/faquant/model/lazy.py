"""Parts of a model that are read on access and freed when nothing refers to them."""

import weakref
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

from ..kernels.arrays import Array, Integers
from ..kernels.backend import Embedding, Linear

T = TypeVar("T")


class LazySequence(Sequence[T], Generic[T]):
    """`count` parts, each built on access. A part that is still referenced is not built again."""

    def __init__(self, build: Callable[[int], T], count: int) -> None:
        self._build = build
        self._count = count
        self._held: weakref.WeakValueDictionary[int, T] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            raise TypeError("a LazySequence does not support slices")
        number = range(self._count)[index]
        part = self._held.get(number)
        if part is None:
            part = self._held[number] = self._build(number)
        return part


class LazyEmbedding:
    """An embedding [vocab, hidden] that is read on each lookup."""

    def __init__(self, read: Callable[[], Embedding]) -> None:
        self._read = read

    def __getitem__(self, tokens: Integers) -> Array:
        return self._read()[tokens]


class LazyLinear:
    """A linear that is built on each call; for repeated calls, keep the result of `built`."""

    is_int8 = False  # not known before it is built

    def __init__(self, build: Callable[[], Linear]) -> None:
        self.build = build

    def __call__(self, x: Array) -> Array:
        return self.build()(x)

    @property
    def nbytes(self) -> int:
        return self.build().nbytes


def built(linear: Linear) -> Linear:
    """The linear itself, built now if it is lazy."""
    return linear.build() if isinstance(linear, LazyLinear) else linear
