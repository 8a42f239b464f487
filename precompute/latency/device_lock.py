"""A reader-writer lock on a device that several worker processes share: timings use the device exclusively.

Other work holds the lock shared; a timing holds it exclusively. It is a file lock, which the system releases when its
process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DeviceTurn:
    """A no-op lock for a device used by a single process."""

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Runs the body concurrently with other work, but not with a timing."""
        yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Runs the body exclusively. Called inside `shared`, whose lock is released meanwhile."""
        yield


class SharedDevice(DeviceTurn):
    """The lock of a device shared with all processes that use the same lock file."""

    def __init__(self, lock: Path) -> None:
        self._lock = lock

    @contextmanager
    def shared(self) -> Iterator[None]:
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            yield
        finally:
            os.close(self._descriptor)

    @contextmanager
    def alone(self) -> Iterator[None]:
        # flock(2) releases the shared lock before it acquires the exclusive one, so two timings cannot deadlock.
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
