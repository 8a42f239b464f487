"""Workers in other processes, reached over pipes or sockets; and the pool of worker processes of `--workers`.

On the CPU each worker is pinned to its own cores, so latencies are those of a machine whose other cores are busy too.
Each GPU is used by one worker, or by several in turn if there are more workers than GPUs: a timed run has it alone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ...data.errors import KnobctlError
from ..run.config import PrecomputeConfig
from .coordinator import Handle
from .worker import Message, PartWorker, Place, answer

# A fork of this process would inherit torch's threads and the locks that they hold; the fork server has no threads.
FORKS = multiprocessing.get_context("forkserver")


ENDING_S = 10.0  # for a process that was killed, or whose connection has ended


@dataclass
class _Peer:
    """A worker in another process."""

    connection: Connection
    place: Place
    process: ForkServerProcess | None = None  # None: started by someone else
    has_joined: bool = False

    def reason_of_end(self) -> str:
        if self.process is None:
            return "the connection to it has ended; its own output may say why"
        self.process.join(ENDING_S)
        return _cause_of_death(self.process.exitcode)

    def kill(self) -> None:
        self.connection.close()
        if self.process is not None:
            self.process.kill()
            self.process.join(ENDING_S)  # a process that waits for a dead file server ends only when that replies


class Processes:
    """Worker processes of this machine, of which lost ones are replaced, and any that `add` brings.

    Args:
        count: processes to start.
        slot: number of the first one among the workers of this machine.
        slots: how many workers the machine has; None: `count`.
        locks: directory of the devices' lock files; None: one of its own.

    Raises:
        KnobctlError: the machine has fewer cores than the processes need.
    """

    is_alone = False

    def __init__(
        self,
        config: PrecomputeConfig,
        count: int,
        *,
        slot: int = 0,
        slots: int | None = None,
        locks: Path | None = None,
    ) -> None:
        _check_cores(config, count)
        self._config = config
        self._own_locks = tempfile.TemporaryDirectory(prefix="knobctl-") if locks is None else None
        locks = locks or Path(self._own_locks.name if self._own_locks else "")
        self._free = [Place(slot + index, slots or count, locks) for index in reversed(range(count))]
        self._peers: dict[int, _Peer] = {}
        self._added: SimpleQueue[_Peer] = SimpleQueue()
        self._count = 0

    def __enter__(self) -> Processes:
        FORKS.set_forkserver_preload([__name__])
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._peers):
            self.kill(number)
        if self._own_locks is not None:
            self._own_locks.cleanup()

    def add(self, connection: Connection, place: Place) -> None:
        """Adds a worker that has connected; any thread may call this."""
        self._added.put(_Peer(connection, place))

    @property
    def size(self) -> int:
        """The number of workers."""
        return len(self._peers)

    def fill(self, wanted: int) -> None:
        """Starts processes for free places, and takes those that were added."""
        while self._free and len(self._peers) < wanted:
            place = self._free.pop()
            here, there = FORKS.Pipe()
            process = FORKS.Process(target=_serve, args=(self._config, there), daemon=True)
            process.start()
            there.close()
            self._take(_Peer(here, place, process))
        while not self._added.empty():
            self._take(self._added.get())

    def _take(self, peer: _Peer) -> None:
        self._peers[self._count] = peer
        self._count += 1

    def call(self, worker: int, *call: Any) -> None:
        """Sends the call to the worker."""
        with suppress(OSError):  # it has ended, which `wait` reports
            self._peers[worker].connection.send(call)

    def wait(self, handle: Handle, timeout_s: float) -> None:
        """Handles the messages that arrive."""
        for number, peer in self._peers.items():
            if not peer.has_joined:
                peer.has_joined = True
                handle(number, Message("joined", peer.place))
                timeout_s = 0.0
        ready = wait([peer.connection for peer in self._peers.values()], timeout=timeout_s)
        for number, peer in list(self._peers.items()):
            if peer.connection in ready:
                self._listen(number, peer, handle)

    def _listen(self, number: int, peer: _Peer, handle: Handle) -> None:
        try:
            while peer.connection.poll():
                handle(number, peer.connection.recv())
        except (EOFError, OSError):
            reason = peer.reason_of_end()
            self.kill(number)
            handle(number, Message("lost", (reason, True)))

    def kill(self, worker: int) -> None:
        """Ends a worker: its process, or the connection to it. Its place becomes free."""
        peer = self._peers.pop(worker)
        peer.kill()
        if peer.process is not None:
            self._free.append(peer.place)

    def farewell(self, value: object) -> None:
        """Sends a last call, `end`, to the workers that were added."""
        for worker, peer in self._peers.items():
            if peer.process is None:
                self.call(worker, "end", value)


def _check_cores(config: PrecomputeConfig, workers: int) -> None:
    cores = len(os.sched_getaffinity(0))
    if config.device == "cpu" and workers * config.sweep_threads > cores:
        raise KnobctlError(
            f"{workers} workers of {config.sweep_threads} thread(s) each are more than the {cores} core(s) that this "
            "process may use: use fewer, or the workers would wait for each other while they are timed."
        )


def _cause_of_death(exitcode: int | None) -> str:
    """Describes how a process that sent no message ended."""
    if exitcode is not None and exitcode < 0:
        number = -exitcode
        name = signal.Signals(number).name if number in signal.valid_signals() else "unknown"
        hint = ": the system may have run out of memory" if name == "SIGKILL" else ""
        return f"it was ended by signal {number} ({name}){hint}"
    return f"it ended with exit code {exitcode}; see what it wrote to stderr"


def _serve(config: PrecomputeConfig, connection: Connection) -> None:
    """Answers the calls of the parent process until it ends."""
    os.setpgid(0, 0)  # SIGINT from a terminal goes to the parent, which lets the current part be finished
    calls: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, calls), daemon=True).start()
    worker = PartWorker(config)
    while True:
        answer(worker, calls.get(), connection.send)


def _receive(connection: Connection, calls: SimpleQueue[tuple[Any, ...]]) -> None:
    """Receives calls. Ends this process at once when the parent has ended, even in the middle of a part."""
    while True:
        try:
            calls.put(connection.recv())
        except (EOFError, OSError):
            os._exit(1)
