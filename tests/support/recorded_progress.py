"""A `Progress` that records what a library function reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from knobctl.data.progress import Progress


class RecordedProgress(Progress):
    """Keeps the notes, and (done, total) after each step; `on_step` is called with the number of steps done."""

    def __init__(self, on_step: Callable[[int], None] | None = None) -> None:
        self.notes: list[str] = []
        self.done: list[tuple[int, int]] = []
        self._on_step = on_step

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def steps(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:  # noqa: ARG002
        count = done

        def advance() -> None:
            nonlocal count
            count += 1
            self.done.append((count, total))
            if self._on_step is not None:
                self._on_step(count)

        yield advance
