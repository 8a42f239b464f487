"""Whose turn it is on a device that several of our processes share: latency runs have it alone.

Work of other kinds holds the device together with its like, a latency run waits until it holds it alone. Between
processes of one machine this is a file lock, which ends with its process, whatever way that ends.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ...data.files.lock import FileLock


class DeviceTurn:
    """A device that nothing else of ours uses: every turn is at once."""

    def shared(self) -> AbstractContextManager[None]:
        """Runs the body beside other work, and never beside a latency run."""
        return nullcontext()

    def alone(self) -> AbstractContextManager[None]:
        """Runs the body beside nothing. Taken inside `shared`, whose hold is given up meanwhile."""
        return nullcontext()


class SharedDevice(DeviceTurn):
    """A device shared with other processes that name the same lock file."""

    def __init__(self, lock: Path) -> None:
        self._lock = FileLock(lock)

    def shared(self) -> AbstractContextManager[None]:
        return self._lock.shared()

    def alone(self) -> AbstractContextManager[None]:
        return self._lock.exclusive()
