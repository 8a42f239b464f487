"""Tasks of worker processes that need no model. A process imports this module, so it imports little."""

from __future__ import annotations

import os
import signal

from knobctl.data.errors import KnobctlError
from knobctl.data.progress import Progress
from knobctl.precompute.run.interrupt import Interrupted


def fail_with_a_bug(_progress: Progress) -> None:
    """A worker's task with a bug."""
    raise TypeError("an odd\nreason")


def fail_with_an_error(_progress: Progress) -> None:
    """A worker's task that the user's input makes fail."""
    raise KnobctlError("an image is missing.")


def stop_as_asked(_progress: Progress) -> None:
    """A worker's task that ends as after SIGINT."""
    raise Interrupted("stopped as asked.")


def die_of_a_signal(_progress: Progress) -> None:
    """A worker's task that the system kills."""
    os.kill(os.getpid(), signal.SIGKILL)


def take_steps(count: int, progress: Progress) -> None:
    """A worker's task of several steps, with the same note in every worker."""
    progress.note("a warning")
    with progress.steps("samples", count) as advance:
        for _ in range(count):
            advance()
