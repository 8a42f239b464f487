"""A pool whose workers run in the test's process and are lost, stall or differ where the test says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from knobctl.data.progress import SILENT, Progress
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.scale.coordinator import Handle
from knobctl.precompute.scale.worker import Message, PartWorker, Place

Fault = Callable[[int, tuple[Any, ...]], Message | None]


def no_fault(_worker: int, _call: tuple[Any, ...]) -> None:
    """A fault that never happens."""


class FaultyPool:
    """Workers that take turns.

    Args:
        fault: called with (worker, call) before each call; what it returns is reported instead of the result. A message
            `silence` makes the worker say nothing from then on.
        place: gives each worker its place.
    """

    is_alone = False

    def __init__(
        self,
        config: PrecomputeConfig,
        count: int,
        fault: Fault = no_fault,
        place: Callable[[int], Place] = lambda _number: Place(),
    ) -> None:
        self._config, self._count, self._fault, self._place = config, count, fault, place
        self._workers: dict[int, PartWorker] = {}
        self._calls: dict[int, tuple[Any, ...]] = {}
        self._joining: list[int] = []
        self._next = 0
        self.killed: list[int] = []
        self.parts: list[tuple[int, tuple[str, ...]]] = []  # (worker, samples) of each part that was handed out

    @property
    def size(self) -> int:
        """The number of workers."""
        return len(self._workers)

    def fill(self, wanted: int) -> None:
        while len(self._workers) < min(wanted, self._count):
            self._workers[self._next] = PartWorker(self._config)
            self._joining.append(self._next)
            self._next += 1

    def call(self, worker: int, *call: Any) -> None:
        self._calls[worker] = call
        if call[0] == "run":
            self.parts.append((worker, call[1]))

    def wait(self, handle: Handle, timeout_s: float) -> None:
        del timeout_s
        for number in self._joining:
            handle(number, Message("joined", self._place(number)))
        self._joining.clear()
        calls, self._calls = self._calls, {}
        for number, call in calls.items():
            message = self._fault(number, call)
            if message is None:
                name, *arguments = call
                message = Message("result", getattr(self._workers[number], name)(*arguments, Told(number, handle)))
            if message.kind == "lost":
                del self._workers[number]
            if message.kind != "silence":
                handle(number, message)

    def kill(self, worker: int) -> None:
        self.killed.append(worker)
        del self._workers[worker]


class Told(Progress):
    """Reports the steps of a part."""

    def __init__(self, number: int, handle: Handle) -> None:
        self._number, self._handle = number, handle

    @contextmanager
    def steps(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        if title != "samples":
            with SILENT.steps(title, total, done) as advance:
                yield advance
            return
        yield lambda: self._handle(self._number, Message("step"))
