"""How library functions report progress: through an object that their caller passes in. They never print."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Reports nothing. A caller that shows progress overrides both methods."""

    def note(self, text: str) -> None:
        """Takes one line that the user should read."""

    @contextmanager
    def steps(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        """Runs the body, which calls what it receives after each of `total` steps, `done` of which are complete."""
        del title, total, done
        yield lambda: None


SILENT = Progress()
