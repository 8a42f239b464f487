"""A bar of the files read, on stderr, and nothing at all when that is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

Progress = Callable[[int, int], None]  # (files done, files in all)


@contextmanager
def file_bar(total: int) -> Iterator[Progress]:
    """Shows a bar of `total` files while the body runs; the body calls what it gets after every file."""
    console = Console(stderr=True)
    columns = (TextColumn("reading results"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn())
    with Bar(*columns, *left, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, _: bar.update(task, completed=done)
