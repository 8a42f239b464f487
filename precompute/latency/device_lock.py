"""Whose turn it is on a device that several of our processes share: latency runs have it alone.

Work of other kinds holds the device together with its like, a latency run waits until it holds it alone. Between
processes of one machine this is a file lock, which ends with its process, whatever way that ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DeviceTurn:
    """A device that nothing else of ours uses: every turn is at once."""

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Runs the body beside other work, and never beside a latency run."""
        yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Runs the body beside nothing. Taken inside `shared`, whose hold is given up meanwhile."""
        yield


class SharedDevice(DeviceTurn):
    """A device shared with other processes that name the same lock file."""

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
        # Changing a lock drops the old one first (flock(2)), so two that want to be alone do not wait for each other.
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
