"""A progress bar on stderr for work that takes long."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Update(Protocol):
    """Updates a progress bar."""

    def __call__(self, done: int, total: int, label: str = ...) -> None: ...


@contextmanager
def progress_bar(label: str, wanted: bool = True) -> Iterator[Update]:
    """Yield a function (done, total, label) that updates a bar on stderr. Nothing is drawn if stderr is not a terminal,
    or if `wanted` is false."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (wanted and console.is_terminal)) as bar:
        task = bar.add_task(label, total=None)

        def update(done: int, total: int, label: str = label) -> None:
            bar.update(task, completed=done, total=total, description=label)

        yield update
