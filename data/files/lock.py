"""One writer per directory, across processes and hosts. A lock whose holder is dead is taken over, never waited for."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import psutil

from ..errors import CacheError

LOCK_NAME = "writer.lock"
CLOCK_SLACK_S = 2.0  # a start time is boot time plus ticks, and boot time moves when the clock is set
# Filesystems without flock answer one of these; then only what the file says protects the directory.
_NO_FLOCK = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """A process, told apart from another that got the same pid later."""

    host: str
    pid: int
    started: float | None  # seconds since the epoch; None where the system does not say

    @classmethod
    def this(cls) -> Holder:
        return cls(socket.gethostname(), os.getpid(), start_time(os.getpid()))

    def is_dead(self) -> bool:
        """Whether the holder ran on this host and is certainly gone. Another host's processes cannot be judged."""
        if self.host != socket.gethostname():
            return False
        if not psutil.pid_exists(self.pid):
            return True
        now = start_time(self.pid)
        return self.started is not None and now is not None and abs(now - self.started) > CLOCK_SLACK_S


def start_time(pid: int) -> float | None:
    """When `pid` started, seconds since the epoch; None when the system does not say."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


class DirectoryLock:
    """Holds `<directory>/writer.lock` while the context lasts. Raises CacheError with host and pid when another has it.

    The kernel's flock makes taking it exclusive on one machine and ends with the process; host, pid and start time in
    the file say who it is, and stand in for flock between machines that share the directory.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOCK_NAME
        self._descriptor: int | None = None

    def __enter__(self) -> DirectoryLock:
        while self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if self._take(descriptor):
                    self._descriptor = descriptor
            finally:
                if self._descriptor is None:
                    os.close(descriptor)
        return self

    def _take(self, descriptor: int) -> bool:
        """Returns whether the lock is ours now; False when the file was replaced meanwhile and must be opened anew."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise self._refusal(_holder(descriptor)) from cause
        except OSError as cause:
            if cause.errno not in _NO_FLOCK:
                raise
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

    def _refusal(self, holder: Holder | None) -> CacheError:
        if holder is None:
            return CacheError(f"{self.path.parent} is being written by another process, which holds {self.path.name}")
        message = f"{self.path.parent} is being written by process {holder.pid} on host {holder.host}. "
        if holder.host == socket.gethostname():
            return CacheError(message + "Wait for it or stop it, then run the same command again.")
        return CacheError(
            message + f"This is host {socket.gethostname()}, which cannot see whether that process still lives: "
            f"if it does not, remove {self.path} and run the same command again."
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)  # before the descriptor is closed: while it is ours
            os.close(self._descriptor)
            self._descriptor = None


def _holder(descriptor: int) -> Holder | None:
    """Who the lock file says holds it; None when it is empty or was cut off while being written."""
    try:
        record = json.loads(os.pread(descriptor, 4096, 0))
        holder = Holder(record["host"], record["pid"], record["started"])
    except (ValueError, KeyError, TypeError):
        return None
    # A pid of 0 or below would address whole process groups.
    typed = type(holder.host) is str and type(holder.pid) is int and type(holder.started) in (float, int, type(None))
    return holder if typed and 0 < holder.pid < 2**31 else None
