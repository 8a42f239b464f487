"""Locks between processes: on a file, within one machine, and on a directory that one process may write."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from ..errors import KnobctlError

LOCK_NAME = "writer.lock"
CLOCK_SLACK_S = 2.0  # a start time is boot time plus ticks, and the boot time moves when the clock is set
# What filesystems without flock answer.
_NO_FLOCK = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)


class FileLock:
    """A lock that several processes hold together (`shared`) or one alone (`exclusive`); both wait for it.

    The kernel releases it when the holding process ends, however it ends. The lock file stays.

    Args:
        path: The lock file; it and its directory are created.
        optional: Run without a lock where the filesystem has none, instead of raising OSError.
    """

    def __init__(self, path: Path, *, optional: bool = False) -> None:
        self._path = path
        self._optional = optional
        self._descriptor: int | None = None

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Runs the body while other processes may hold the lock too, but none of them exclusively."""
        with self._held(fcntl.LOCK_SH):
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Runs the body while no other process holds the lock. Inside `shared`, gives up the shared hold meanwhile."""
        if self._descriptor is None:
            with self._held(fcntl.LOCK_EX):
                yield
            return
        # Converting a lock drops the old one first (flock(2)), so two processes that both convert do not deadlock.
        _flock(self._descriptor, fcntl.LOCK_EX, optional=self._optional)
        try:
            yield
        finally:
            _flock(self._descriptor, fcntl.LOCK_SH, optional=self._optional)

    @contextmanager
    def _held(self, operation: int) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = _open(self._path)
        try:
            _flock(self._descriptor, operation, optional=self._optional)
            yield
        finally:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock; its start time tells it from a later process with the same pid."""

    host: str
    pid: int
    started: float | None  # seconds since the epoch; None where the system does not say

    @classmethod
    def this(cls) -> Holder:
        """Returns the calling process."""
        return cls(socket.gethostname(), os.getpid(), start_time(os.getpid()))

    def is_dead(self) -> bool:
        """Whether the holder ran on this host and is certainly gone. False for a process of another host."""
        import psutil

        if self.host != socket.gethostname():
            return False
        if not psutil.pid_exists(self.pid):
            return True
        now = start_time(self.pid)
        return self.started is not None and now is not None and abs(now - self.started) > CLOCK_SLACK_S


def start_time(pid: int) -> float | None:
    """Returns when process `pid` started, in seconds since the epoch; None where the system does not say."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


class DirectoryLock:
    """Holds `<directory>/writer.lock` while the context lasts; never waits, and takes over the lock of a dead process.

    On one machine flock makes it exclusive, and ends with the process. Host, pid and start time in the file say who
    holds it, and stand in for flock between machines that share the directory.

    Raises:
        KnobctlError: Another process holds it; of type `error`, with host and pid. On entering.
    """

    def __init__(self, directory: Path, error: type[KnobctlError] = KnobctlError) -> None:
        self.path = directory / LOCK_NAME
        self._error = error
        self._descriptor: int | None = None

    def __enter__(self) -> DirectoryLock:
        while self._descriptor is None:
            descriptor = _open(self.path)
            try:
                if self._take(descriptor):
                    self._descriptor = descriptor
            finally:
                if self._descriptor is None:
                    os.close(descriptor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)  # before the descriptor is closed, while the lock is held
            os.close(self._descriptor)
            self._descriptor = None

    def _take(self, descriptor: int) -> bool:
        """Returns whether the lock is held now; False when the file has been replaced and must be opened again."""
        try:
            _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, optional=True)
        except BlockingIOError as cause:
            raise self._refusal(_holder(descriptor)) from cause
        try:
            if os.stat(self.path).st_ino != os.fstat(descriptor).st_ino:
                return False
        except FileNotFoundError:
            return False
        holder = _holder(descriptor)
        if holder is not None and not holder.is_dead():
            raise self._refusal(holder)
        data = json.dumps(asdict(Holder.this())).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, data, 0)
        os.fsync(descriptor)
        return True

    def _refusal(self, holder: Holder | None) -> KnobctlError:
        if holder is None:
            return self._error(f"{self.path.parent} is being written by another process, which holds {self.path.name}")
        message = f"{self.path.parent} is being written by process {holder.pid} on host {holder.host}. "
        if holder.host == socket.gethostname():
            return self._error(message + "Wait for it or stop it, then run the same command again.")
        return self._error(
            message + f"This is host {socket.gethostname()}, which cannot tell whether that process is still running: "
            f"if it is not, remove {self.path} and run the same command again."
        )


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _flock(descriptor: int, operation: int, *, optional: bool) -> None:
    """Calls flock; where the filesystem has none, raises OSError unless the lock is `optional`."""
    try:
        fcntl.flock(descriptor, operation)
    except OSError as cause:
        if not optional or cause.errno not in _NO_FLOCK:
            raise


def _holder(descriptor: int) -> Holder | None:
    """Returns the holder that the lock file names; None when it is empty or was cut off while being written."""
    try:
        record = json.loads(os.pread(descriptor, 4096, 0))
        holder = Holder(record["host"], record["pid"], record["started"])
    except (ValueError, KeyError, TypeError):
        return None
    # A pid of 0 or below would address whole process groups.
    typed = type(holder.host) is str and type(holder.pid) is int and type(holder.started) in (float, int, type(None))
    return holder if typed and 0 < holder.pid < 2**31 else None
