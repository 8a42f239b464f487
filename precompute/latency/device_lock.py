"""A reader-writer lock on a device that several worker processes share: timings use the device exclusively.

Other work holds the lock shared; a timing holds it exclusively. It is a file lock, which the system releases when its
process exits for any reason.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ...data.files.lock import FileLock


class DeviceTurn:
    """A no-op lock for a device used by a single process."""

    def shared(self) -> AbstractContextManager[None]:
        """Runs the body concurrently with other work, but not with a timing."""
        return nullcontext()

    def alone(self) -> AbstractContextManager[None]:
        """Runs the body exclusively. Called inside `shared`, whose lock is released meanwhile."""
        return nullcontext()


class SharedDevice(DeviceTurn):
    """The lock of a device shared with all processes that use the same lock file."""

    def __init__(self, lock: Path) -> None:
        self._lock = FileLock(lock)

    def shared(self) -> AbstractContextManager[None]:
        return self._lock.shared()

    def alone(self) -> AbstractContextManager[None]:
        return self._lock.exclusive()
