"""Heartbeats of ranks: each keeps a file on shared storage that shows that it is alive or why it failed.

Ages are measured with the reader's own clock, from the last change that it saw, so that the clocks of the machines
need not agree. A file left by an earlier launch counts only once it changes, or if its process is running here.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from ...data.errors import CacheError, KnobctlError
from ...data.files.atomic import write_atomically
from ...data.files.bounded_json import dump_json, parse_json
from ...data.files.lock import Holder

BEAT_S = 10.0  # between two heartbeats
LOST_S = 60.0  # without a heartbeat for this long, a rank counts as lost
MEETING_S = 240.0  # within which all ranks must have started
POLL_S = 1.0
RESUME = "Start the same command again: what is committed is kept."


def heartbeat_path(home: Path, rank: int, count: int) -> Path:
    """Returns the file of one rank."""
    return home / f"rank-{rank}-of-{count}.json"


class Heartbeat:
    """While the context lasts, updates this rank's file regularly; records an error that ends it."""

    def __init__(self, home: Path, rank: int, count: int, *, beat_s: float = BEAT_S) -> None:
        self.path = heartbeat_path(home, rank, count)
        self._name = f"rank {rank} of {count}"
        self._beat_s = beat_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write(None)
        except OSError as error:
            raise CacheError(
                f"{self.path} cannot be written ({error.strerror or error}): choose another directory, or free space."
            ) from error
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if error is None:
            return
        reason = error.reason if isinstance(error, PeerFailed) else f"{self._name} failed: {_text(error)}"
        try:
            self._write(reason)
        except OSError:
            return  # the rank's own error matters more; the others will notice that this process has ended

    def _write(self, error: str | None) -> None:
        write_atomically(self.path, dump_json({**asdict(Holder.this()), "error": error}))

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_s):
            try:
                os.utime(self.path)
            except OSError:
                continue  # removed after the merge, or storage that is briefly unavailable


def _text(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "it was stopped"
    text = " ".join(str(error).split())
    return text if isinstance(error, KnobctlError) else f"{type(error).__name__}: {text}"


class PeerFailed(KnobctlError):
    """Another rank failed or is lost."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason.rstrip('.')}. {RESUME}")
        self.reason = reason


class _Content(NamedTuple):
    """The content of a rank's file."""

    changed_ns: int  # by the clock of the machine that wrote it
    holder: Holder
    error: str | None

    @classmethod
    def read(cls, path: Path) -> _Content | None:
        """Returns None if there is no such file. Opening it makes network storage check whether it has changed."""
        try:
            with path.open("rb") as file:
                changed_ns, data = os.fstat(file.fileno()).st_mtime_ns, file.read(1 << 16)
        except OSError:
            return None
        record = parse_json(data, str(path), CacheError)
        if not isinstance(record, dict):
            raise CacheError(f"{path} was not written by knobctl: choose another directory.")
        host, pid, started = (record.get(name) for name in ("host", "pid", "started"))
        # A pid of 0 or below would address whole process groups.
        if type(host) is not str or type(pid) is not int or not 0 < pid < 2**31:
            raise CacheError(f"{path} was not written by knobctl: choose another directory.")
        error = record.get("error")
        holder = Holder(host, pid, started if isinstance(started, float) else None)
        return cls(changed_ns, holder, None if error is None else str(error))


@dataclass
class _Peer:
    """The state of another rank, read from its file."""

    rank: int
    path: Path
    content: _Content | None  # when last read; None: no file
    changed_at: float
    is_here: bool = False  # started in this launch

    def look(self, now: float) -> None:
        content = _Content.read(self.path)
        if content is not None and content != self.content:
            self.content, self.changed_at, self.is_here = content, now, True
        elif content is not None and not self.is_here:
            self.is_here = content.holder.host == socket.gethostname() and not content.holder.is_dead()

    @property
    def error(self) -> str | None:
        return None if self.content is None else self.content.error

    @property
    def holder(self) -> Holder | None:
        return None if self.content is None else self.content.holder


class Peers:
    """The other ranks of a run.

    Args:
        clock: seconds, of any origin.
    """

    def __init__(
        self,
        home: Path,
        rank: int,
        count: int,
        *,
        lost_s: float = LOST_S,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.home, self.rank, self.count = home, rank, count
        self._lost_s, self._poll_s, self._clock = lost_s, poll_s, clock
        self._peers = []
        for peer in range(count):
            if peer != rank:
                path = heartbeat_path(home, peer, count)
                self._peers.append(_Peer(peer, path, _Content.read(path), clock()))

    def meet(self, within_s: float = MEETING_S) -> None:
        """Waits until all ranks have started. Raises KnobctlError, naming the missing ones, after `within_s`."""
        end = self._clock() + within_s
        while True:
            self._look()
            missing = [peer for peer in self._peers if not peer.is_here]
            problem = self.problem()
            if problem is not None:
                raise PeerFailed(problem)
            if not missing:
                return
            if self._clock() > end:
                names = " and ".join(f"rank {peer.rank}" for peer in missing)
                earlier = [peer.error for peer in missing if peer.error]
                raise KnobctlError(
                    f"{names} of {self.count} did not start within {within_s:.0f} s, as seen by rank {self.rank} in "
                    f"{self.home}: start all ranks at the same time, with the same --out on storage that they share, "
                    f"and each with a RANK of its own. {RESUME}"
                    + (f" An earlier message there: {earlier[0]}" if earlier else "")
                )
            time.sleep(self._poll_s)

    def wait_for(self, paths: Sequence[Path]) -> None:
        """Waits until all files exist. Raises KnobctlError if another rank failed or is lost."""
        while True:
            self._look()
            problem = self.problem()  # before the files: those that a rank wrote before it ended are then seen
            if all(path.is_file() for path in paths):
                return
            if problem is not None:
                raise PeerFailed(problem)
            time.sleep(self._poll_s)

    def problem(self) -> str | None:
        """Returns why a rank failed, or else which rank is lost; None if there is neither, as last read."""
        here = [peer for peer in self._peers if peer.is_here]
        for peer in here:
            if peer.error is not None:
                return peer.error
        for peer in here:
            holder, name = peer.holder, f"rank {peer.rank} of {self.count}"
            if holder is not None and holder.is_dead():
                return (
                    f"{name} is lost: its process {holder.pid} on {holder.host} ended without a message. It may have "
                    "been killed, for instance because memory ran out; its own output may say more."
                )
            if self._clock() - peer.changed_at > self._lost_s:
                where = "" if holder is None else f" (process {holder.pid} on {holder.host})"
                return f"{name}{where} is lost: {peer.path} has not changed for {self._lost_s:.0f} s."
        return None

    def _look(self) -> None:
        now = self._clock()
        for peer in self._peers:
            peer.look(now)
