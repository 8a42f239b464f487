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

TABLE_WIDTH = 140  # characters of the widest report


def emit(result: Mapping[str, Any], as_json: bool, render: Callable[[Mapping[str, Any]], Any]) -> None:
    """Prints a result on stdout: as JSON, or as the rich renderable that `render` makes of it."""
    if as_json:
        click.echo(json.dumps(result, indent=2, allow_nan=False))
        return
    from rich.console import Console

    # A narrower terminal wraps long lines, which stay readable; a table fitted to its width would lose figures.
    width = max(TABLE_WIDTH, Console(file=sys.stdout).width) if sys.stdout.isatty() else TABLE_WIDTH
    Console(file=sys.stdout, width=width).print(render(result))


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
