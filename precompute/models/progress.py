"""Progress with the time left, on stderr, and nothing at all when that is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[], None]

_quiet = False  # of this process


@contextmanager
def quiet(hold: bool) -> Iterator[None]:
    """Shows no bars while the body runs, if `hold`: another process shows its own on the same terminal."""
    global _quiet
    before, _quiet = _quiet, hold
    try:
        yield
    finally:
        _quiet = before


@contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Shows a bar of `total` steps while the body runs; the body calls what it gets after every step."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=_quiet or not console.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda: bar.advance(task)


def say(text: str) -> None:
    """Prints one line on stderr."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(text)
