"""The pool of a run in one process: this process is its only worker."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..run.config import PrecomputeConfig
from .coordinator import Handle
from .worker import Message, PartWorker, Place, SentProgress


class Alone:
    """Runs every call in this process, while the coordinator waits. Errors are raised as they are."""

    is_alone = True

    def __init__(self, config: PrecomputeConfig) -> None:
        self._config = config
        self._worker: PartWorker | None = None
        self._call: tuple[Any, ...] = ()

    @property
    def size(self) -> int:
        """The number of workers."""
        return 1

    def fill(self, wanted: int) -> None:
        """Does nothing: there is no other worker."""

    def call(self, worker: int, *call: Any) -> None:
        """Keeps the call for the next `wait`."""
        del worker
        self._call = call

    def wait(self, handle: Handle, timeout_s: float) -> None:
        """Runs the call, however long it takes."""
        del timeout_s
        if self._worker is None:
            self._worker = PartWorker(self._config)
            handle(0, Message("joined", Place()))
        elif self._call:
            (name, *arguments), self._call = self._call, ()
            result = getattr(self._worker, name)(*arguments, SentProgress(partial(handle, 0)))
            handle(0, Message("result", result))

    def kill(self, worker: int) -> None:
        """Never called: this process cannot stall while it waits for itself."""
        raise AssertionError(worker)
