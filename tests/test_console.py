"""Progress on stderr: bars on a terminal only, notes always."""

from __future__ import annotations

import io
import sys

import pytest

from knobctl.console import ConsoleProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report(progress: ConsoleProgress) -> None:
    progress.note("before")
    with progress.steps("samples", 4, done=1) as advance:
        advance()
        progress.note("a [red]note[/red] " + "x" * 200)
        with progress.steps("parts", 2) as advance_part:
            advance_part()
    progress.note("after")


def test_without_a_terminal_only_notes_are_written(capsys: pytest.CaptureFixture[str]):
    report(ConsoleProgress())
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == ["before", "a [red]note[/red] " + "x" * 200, "after"]


def test_a_terminal_shows_bars_with_the_count_and_the_remaining_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    report(ConsoleProgress())
    shown = sys.stderr.getvalue()
    assert "samples" in shown
    assert "2/4" in shown
    assert "parts" in shown
    assert "left" in shown
    assert "a [red]note[/red]" in shown


def test_bars_end_with_the_body_that_they_belong_to():
    progress = ConsoleProgress()
    with pytest.raises(ValueError, match="stopped"), progress.steps("samples", 2):
        raise ValueError("stopped")
    with progress.steps("samples", 2) as advance:
        advance()
