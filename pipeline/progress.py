"""Progress bars on standard error, and only where somebody watches: a pipe or a log gets nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar over `total` pieces of work; call what it yields once for each finished one."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with _start(*columns) as progress:
        bar = progress.add_task(title, total=total)
        yield lambda: progress.advance(bar)


@contextmanager
def budget_bar(title: str) -> Iterator[Callable[[float, str], None]]:
    """A bar over a budget; tell it the share that is used up (0 to 1) and a word on where things stand."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    with _start(*columns, TimeRemainingColumn()) as progress:
        bar = progress.add_task(title, total=1.0)
        yield lambda share, text: progress.update(bar, completed=share, description=f"{title}{text}")


def _start(*columns: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
