"""Output of the command line: results on stdout; progress, notes and warnings on stderr."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from .data.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

MIN_WIDTH = 80  # characters; tables fit in them unless names are long
UNLIMITED = 10_000
COLUMN_GAP = 3  # at most, with a line between columns


def emit(result: Mapping[str, Any], as_json: bool, render: Callable[[Mapping[str, Any]], Any]) -> None:
    """Prints a result on stdout: as JSON, or as the rich renderable that `render` makes of it."""
    if as_json:
        click.echo(json.dumps(result, indent=2, allow_nan=False))
        return
    from rich.console import Console

    shown = render(result)
    # Long names and lines wrap and stay readable; a table squeezed into fewer characters than its figures need would
    # lose some of them.
    width = max(MIN_WIDTH, _least_width(shown))
    if sys.stdout.isatty():
        width = max(width, Console(file=sys.stdout).width)
    Console(file=sys.stdout, width=width).print(shown)


def _least_width(shown: Any) -> int:
    """Returns the characters that the columns which do not wrap take in the widest table."""
    from rich.console import Console, Group
    from rich.padding import Padding
    from rich.table import Table

    if isinstance(shown, Group):
        return max((_least_width(part) for part in shown.renderables), default=0)
    if isinstance(shown, Padding):
        return _least_width(shown.renderable) + shown.left + shown.right
    if not isinstance(shown, Table):
        return 0
    measure = Console(width=UNLIMITED).measure
    fixed = [column for column in shown.columns if column.no_wrap]
    widths = [max(measure(cell).maximum for cell in (column.header, *column.cells)) for column in fixed]
    return sum(widths) + COLUMN_GAP * len(shown.columns) + 1


def log(text: str) -> None:
    """Prints a line on stderr."""
    click.echo(text, err=True)


class ConsoleProgress(Progress):
    """Bars with the remaining time, if stderr is a terminal, and notes as lines; all on stderr."""

    def __init__(self) -> None:
        self._bars: Bars | None = None  # while at least one bar is shown

    def note(self, text: str) -> None:
        if self._bars is None:
            log(text)
        else:  # above the bars
            self._bars.console.print(text, soft_wrap=True, highlight=False, markup=False)

    @contextmanager
    def steps(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        """Shows a bar while the body runs. Bars of nested calls are shown together."""
        if self._bars is not None:
            with _bar(self._bars, title, total, done) as advance:
                yield advance
            return
        with _bars() as self._bars:
            try:
                with _bar(self._bars, title, total, done) as advance:
                    yield advance
            finally:
                self._bars = None


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn())
    return Bars(*columns, *left, console=console, disable=not console.is_terminal, transient=True)


@contextmanager
def _bar(bars: Bars, title: str, total: int, done: int) -> Iterator[Callable[[], None]]:
    task = bars.add_task(title, total=total, completed=done)
    try:
        yield lambda: bars.advance(task)
    finally:
        bars.remove_task(task)


class ResultStream(io.TextIOWrapper):
    """stdout of a command. If it cannot be written, for example on a full disk, the command ends with one line."""

    @classmethod
    def install(cls) -> None:
        """Makes stdout accept any text and report write errors as one line."""
        if sys.stdout is None:  # closed by the caller
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  open until the process ends
        elif isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
            if sys.stdout is sys.__stdout__:
                sys.stdout = cls(sys.stdout.buffer, sys.stdout.encoding, "backslashreplace")

    def write(self, text: str, /) -> int:
        with _write_errors(self):
            return super().write(text)

    def flush(self) -> None:
        with _write_errors(self):
            super().flush()


@contextmanager
def _write_errors(stream: io.TextIOWrapper) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # the reader, for example `head`, has closed the pipe: click ends the command silently
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else the flush at exit would fail again
        raise click.ClickException(
            f"the result cannot be written to stdout ({error.strerror}): redirect it to another place. "
            "Files that the command wrote are not affected."
        ) from error
