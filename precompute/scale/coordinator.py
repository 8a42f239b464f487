"""The coordinator of a run: hands out parts to workers, commits what they return, and replaces workers that are lost.

It is the only process that writes the cache, and holds the directory's lock from the start to the end. So a part is
committed once, whatever becomes of the workers, and workers need not see the cache's directory.
"""

from __future__ import annotations

import datetime
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from ... import __version__
from ...data.cache.manifest import MANIFEST_NAME, RUN_NAME
from ...data.cache.run_record import check_same_run, differences
from ...data.cache.writer import CacheWriter
from ...data.errors import CacheMismatch, KnobctlError
from ...data.files.atomic import DISK, Disk
from ...data.progress import SILENT, Progress
from ..run.config import PrecomputeConfig
from ..run.fixed import Fixed, fixed_before
from ..run.interrupt import Interrupted, stop_on_interrupt
from ..run.journal import Journal
from ..run.shard import Part, Share, summary
from .earlier_shares import adopt_shares, fixed_by_shares
from .part_queue import PartIds, PartQueue
from .worker import Message, Place

LOSSES = 3  # workers that a part may lose
POLL_S = 0.5
STATUS_S = 60.0  # between two lines about the state of the run
RESUME = "Run the same command again to continue."

Handle = Callable[[int, Message], None]


class Pool(Protocol):
    """The workers of a run: starts them, and passes calls and messages on. Workers have numbers, each used once.

    Beside the messages of `worker.py` it reports `joined` (its Place) and `lost` (reason, whether its part may be the
    cause).
    """

    is_alone: bool  # one worker in this process

    @property
    def size(self) -> int:
        """The number of workers, with those that have not joined yet."""

    def fill(self, wanted: int) -> None:
        """Starts workers, as many as the pool may have but not more than `wanted`. Does not wait for them."""

    def call(self, worker: int, *call: Any) -> None:
        """Calls a method of a worker, `(name, *arguments)`, and returns at once."""

    def wait(self, handle: Handle, timeout_s: float) -> None:
        """Waits for messages, up to `timeout_s`, and handles all that have arrived."""

    def kill(self, worker: int) -> None:
        """Ends a worker, of which nothing is reported from then on."""


@dataclass
class _Worker:
    """A worker as the coordinator sees it."""

    name: str
    place: Place
    heard_at: float
    state: str = "joined"  # then `loaded`, then `ready`
    call: tuple[Any, ...] | None = None  # in progress
    steps: int = 0  # samples of the part that it has run
    _bars: list[tuple[ExitStack, Callable[[], None]]] = field(default_factory=list)

    @property
    def is_running(self) -> bool:
        """Whether it runs a part."""
        return self.call is not None and self.call[0] == "run"

    def show(self, progress: Progress, kind: str, value: Any) -> None:
        """Shows what a worker reports of its progress bars."""
        if kind == "begin":
            stack = ExitStack()
            self._bars.append((stack, stack.enter_context(progress.steps(*value))))
        elif kind == "step":
            self._bars[-1][1]()
        else:
            self._bars.pop()[0].close()

    def close_bars(self) -> None:
        while self._bars:
            self._bars.pop()[0].close()


class Coordinator:
    """Runs a share with the workers of a pool.

    Args:
        clock: seconds, of any origin.
        disk: System calls, which tests replace.
    """

    def __init__(
        self,
        config: PrecomputeConfig,
        pool: Pool,
        progress: Progress = SILENT,
        clock: Callable[[], float] = time.monotonic,
        disk: Disk = DISK,
    ) -> None:
        self._config, self._pool, self._progress, self._clock, self._disk = config, pool, progress, clock, disk
        self._workers: dict[int, _Worker] = {}
        self._share: Share | None = None
        self._fixed: Fixed | None = None
        self._error: KnobctlError | None = None
        self._notes: set[str] = set()
        self._losses = self._early_losses = 0
        self._parts = 0
        self._queue = PartQueue((), 1)
        self._left = 0  # samples that are not committed
        self._commit: Callable[[Part], None] | None = None  # None: the first part cannot be run yet
        self._stop_asked: Callable[[], bool] = lambda: False
        self._advance: Callable[[], None] = lambda: None

    def run(self) -> dict[str, Any]:
        """Runs the share, or what is missing of it, and completes the cache. Returns its summary, JSON-able.

        Raises:
            Interrupted: after SIGINT, once the current parts are committed.
            CacheMismatch: the directory was started with another request, or workers differ.
            KnobctlError: a worker failed, or too many were lost.
        """
        started, config = time.perf_counter(), self._config
        if (config.out / MANIFEST_NAME).is_file():
            if not (config.out / RUN_NAME).is_file():
                raise KnobctlError(f"{config.out} was not made by precompute: choose another directory.")
            share = self._prepare(Fixed.read(config.out), workers=1)
            check_same_run(config.out, share.record, config.shard)
        else:
            with CacheWriter(config.out, shard=config.shard, disk=self._disk) as writer:
                share = self._prepare(fixed_before(config) or fixed_by_shares(config.out))
                writer.begin(share.record)
                adopt_shares(writer, share.record)
                self._run_parts(share, writer)
        return summary(config, len(share.sample_ids), time.perf_counter() - started)

    def _prepare(self, fixed: Fixed | None, workers: int = 1 << 20) -> Share:
        """Has the first worker determine what the run depends on."""
        self._fixed = fixed
        while self._share is None:
            self._turn(workers)
            if self._error is not None:
                raise self._error
        return self._share

    def _run_parts(self, share: Share, writer: CacheWriter) -> None:
        done, journal, total = writer.done_samples(), Journal(self._config.out), len(share.sample_ids)
        waiting = [sample_id for sample_id in share.sample_ids if sample_id not in done]
        self._queue = PartQueue(waiting, self._config.part_samples)
        self._left = len(waiting)
        started = status_at = self._clock()

        def commit(part: Part) -> None:
            part.commit(writer, journal)
            self._left -= part.ledger.counts["samples"]

        self._commit = commit
        with (
            self._progress.steps("samples", total, len(done)) as self._advance,
            stop_on_interrupt() as self._stop_asked,
        ):
            while self._left:
                running = sum(worker.is_running for worker in self._workers.values())
                if self._is_stopping and not running:
                    break
                self._turn(0 if self._is_stopping else self._queue.num_parts + running)
                if not self._pool.is_alone and self._clock() > status_at + STATUS_S:
                    status_at = self._clock()
                    self._progress.note(self._status(total, len(waiting) - self._left, status_at - started))
        if self._error is not None:
            raise self._error
        if self._left:
            raise Interrupted(
                f"stopped as asked: {total - self._left} of {total} samples are in {self._config.out}. {RESUME}"
            )
        share.finish(writer, journal)

    @property
    def _is_stopping(self) -> bool:
        """Whether no further part is handed out."""
        return self._error is not None or self._stop_asked()

    def _status(self, total: int, done_now: int, seconds: float) -> str:
        """Returns one line about the state of the run. `done_now` samples have taken `seconds`."""
        eta = "unknown" if not done_now else str(datetime.timedelta(seconds=round(seconds / done_now * self._left)))
        return (
            f"{self._parts} parts committed, {total - self._left} of {total} samples; {len(self._workers)} workers, "
            f"{self._losses} lost; {eta} left"
        )

    def _turn(self, wanted: int) -> None:
        """Handles what has happened, and gives every idle worker its next call."""
        self._pool.fill(wanted)
        self._pool.wait(self._handle, POLL_S)
        for number, worker in list(self._workers.items()):
            if worker.call is not None and self._clock() - worker.heard_at > self._config.stall_timeout:
                self._pool.kill(number)
                reason = f"it made no progress for {self._config.stall_timeout:g} s (--stall-timeout)"
                self._handle(number, Message("lost", (reason, True)))
        for number, worker in self._workers.items():
            if worker.call is None:
                self._give_call(number, worker)

    def _give_call(self, number: int, worker: _Worker) -> None:
        worker.call = self._next_call(worker)
        if worker.call is not None:
            worker.heard_at, worker.steps = self._clock(), 0
            self._pool.call(number, *worker.call)

    def _next_call(self, worker: _Worker) -> tuple[Any, ...] | None:
        if self._is_stopping:
            return None
        if worker.state == "joined":
            return ("load", worker.place)
        if self._share is None:
            is_taken = any(other.call is not None and other.call[0] == "prepare" for other in self._workers.values())
            return None if is_taken else ("prepare", self._fixed)
        if worker.state == "loaded":
            return ("begin", self._share.sets, self._share.fixed)
        part = None if self._commit is None else self._queue.next(self._pool.size)
        return None if part is None else ("run", part)

    def _handle(self, number: int, message: Message) -> None:
        kind, value = message
        if kind == "joined":
            host = "" if value.host == socket.gethostname() else f" on {value.host}"
            self._workers[number] = _Worker(f"worker {number}{host}", value, self._clock())
            if value.version != __version__:
                self._fail(
                    f"worker {number}{host} has knobctl {value.version}, but this is {__version__}: install one."
                )
            return
        if kind == "lost":
            never_joined = _Worker(f"worker {number}", Place(), 0.0)
            self._lose(self._workers.pop(number, never_joined), *value)
            return
        worker = self._workers[number]
        worker.heard_at = self._clock()
        if kind == "note":
            if value not in self._notes:
                self._progress.note(value)
            self._notes.add(value)
        elif kind == "result":
            self._take(number, worker, value)
        elif kind == "failed":
            worker.call = None
            self._fail(f"{worker.name} failed: {value}")
        elif worker.is_running:
            if kind == "step":
                worker.steps += 1
                if self._queue.is_new_step(_part_of(worker), worker.steps):
                    self._advance()
        else:
            worker.show(self._progress, kind, value)

    def _take(self, number: int, worker: _Worker, result: Any) -> None:
        """Handles the result of a worker's call."""
        assert worker.call is not None
        name, worker.call = worker.call[0], None
        if name == "load":
            worker.state = "loaded"
        elif name == "prepare":
            worker.state, self._share = "ready", result
        elif name == "begin":
            worker.state = "ready"
            assert self._share is not None
            differing = list(differences(self._share.record, result))
            if differing:
                self._error = CacheMismatch(
                    f"{worker.name} differs from the worker that began the run: {'; '.join(differing[:LOSSES])}. All "
                    f"workers of a run need the same kind of device, the same model and the same files. {RESUME}"
                )
        else:
            assert self._commit is not None
            self._give_call(number, worker)  # so that it need not wait for the disk
            began = self._clock()
            self._commit(result)
            seconds = self._clock() - began
            for other in self._workers.values():  # messages that arrived meanwhile are not read yet
                other.heard_at += seconds
            self._parts += 1
            self._early_losses = 0

    def _lose(self, worker: _Worker, reason: str, counts: bool) -> None:
        """Gives the part of a lost worker to another one, or ends the run."""
        self._losses += 1
        worker.close_bars()
        self._progress.note(f"{worker.name} is lost: {reason}. Another worker takes over.")
        if worker.is_running:
            part = _part_of(worker)
            if self._queue.give_back(part, counts=counts) >= LOSSES:
                names = ", ".join(part)
                self._fail(f"{LOSSES} workers were lost while they ran the same samples ({names}): {reason}. {RESUME}")
            return
        self._early_losses += counts
        if self._early_losses >= LOSSES:
            self._fail(f"{LOSSES} workers were lost before they ran a part: {reason}. {RESUME}")

    def _fail(self, text: str) -> None:
        self._error = self._error or KnobctlError(text)


def _part_of(worker: _Worker) -> PartIds:
    assert worker.call is not None
    part: PartIds = worker.call[1]
    return part
