"""Stopping a run on SIGINT, once the current part is committed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ...data.errors import KnobctlError


class Interrupted(KnobctlError):
    """The user stopped the run; committed parts are kept."""


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Makes the first SIGINT only set a flag, which the body can query; a second one raises KeyboardInterrupt."""
    asked = False

    def ask(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not in the main thread, the only one that may set handlers
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
