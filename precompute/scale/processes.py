"""Runs tasks in separate processes: passes SIGINT on to them, shows their progress, and reports why one failed.

Independent of models, so that a task needs only its own imports.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait

from ...data.errors import KnobctlError
from ...data.progress import SILENT, Progress
from ..run.interrupt import Interrupted, stop_on_interrupt

# A fork of this process would inherit torch's threads and the locks that they hold; the fork server has no threads.
FORKS = multiprocessing.get_context("forkserver")

# A worker's task; it reports its progress, and the parent shows it.
Work = Callable[[Progress], object]


def run_processes(
    works: Sequence[Work], progress: Progress = SILENT, advance: Callable[[], None] = lambda: None
) -> None:
    """Runs each task in a separate process and waits for all. Tasks are pickled, so they are module-level functions.

    Args:
        progress: shows the workers' notes, each text once.
        advance: called for each step that a worker reports.

    Raises:
        Interrupted: after SIGINT, which is passed on to every worker.
        KnobctlError: a worker failed; the message gives the cause.
    """
    notes: set[str] = set()

    def note(text: str) -> None:
        if text not in notes:
            progress.note(text)
        notes.add(text)

    with stop_on_interrupt() as stop_asked:
        workers = [_Worker(index, work) for index, work in enumerate(works)]
        while any(worker.running for worker in workers):
            wait([worker.messages for worker in workers if worker.running], timeout=0.5)
            for worker in workers:
                worker.listen(note, advance, stop=stop_asked())
    errors = [worker.error for worker in workers if worker.error is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, Interrupted)):  # failures before interruptions
        raise error


class _Worker:
    """The parent's view of one process."""

    def __init__(self, index: int, work: Work) -> None:
        self.messages, send = FORKS.Pipe(duplex=False)
        self.error: KnobctlError | None = None
        self.running = True
        self._index = index
        self._can_stop = self._stopped = False
        self._process = FORKS.Process(target=_work, args=(work, send), daemon=True)
        with _sigint_ignored():  # until the worker reports that it handles SIGINT
            self._process.start()
        send.close()

    def listen(self, note: Callable[[str], None], advance: Callable[[], None], *, stop: bool) -> None:
        """Handles the worker's messages; if `stop`, passes SIGINT on to it, once."""
        while self.running and self.messages.poll():
            try:
                kind, text = self.messages.recv()
            except EOFError:
                self._process.join()
                kind, text = "failed", _cause_of_death(self._process.exitcode)
            if kind == "ready":
                self._can_stop = True
            elif kind == "step":
                advance()
            elif kind == "note":
                note(text)
            else:
                self._end(kind, text)
        if stop and self.running and self._can_stop and not self._stopped and self._process.pid is not None:
            os.kill(self._process.pid, signal.SIGINT)
            self._stopped = True

    def _end(self, kind: str, text: str) -> None:
        self.running = False
        self._process.join()
        if kind == "stopped":
            self.error = Interrupted(text)
        elif kind == "failed":
            self.error = KnobctlError(f"worker {self._index} failed: {text}")


def _cause_of_death(exitcode: int | None) -> str:
    """Describes how a process that sent no message ended."""
    if exitcode is not None and exitcode < 0:
        number = -exitcode
        name = signal.Signals(number).name if number in signal.valid_signals() else "unknown"
        hint = ": the system may have run out of memory" if name == "SIGKILL" else ""
        return f"it was ended by signal {number} ({name}){hint}. Run the same command again to continue."
    return f"it ended with exit code {exitcode}; see what it wrote to stderr."


@contextmanager
def _sigint_ignored() -> Iterator[None]:
    """Makes processes started in the body ignore SIGINT until they set a handler."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not in the main thread, the only one that may set handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _SentProgress(Progress):
    """Sends steps and notes to the parent."""

    def __init__(self, send: Connection) -> None:
        self._send = send

    def note(self, text: str) -> None:
        self._send.send(("note", text))

    @contextmanager
    def steps(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        del title, total
        for _ in range(done):
            self._advance()
        yield self._advance

    def _advance(self) -> None:
        self._send.send(("step", ""))


def _work(work: Work, send: Connection) -> None:
    """Runs one task. Sends `ready`, its progress, then `done`, or `stopped` or `failed` with the reason."""
    os.setpgid(0, 0)  # SIGINT from a terminal then comes only from the parent, and not twice
    signal.signal(signal.SIGINT, signal.default_int_handler)
    send.send(("ready", ""))
    try:
        work(_SentProgress(send))
    except Interrupted as error:
        send.send(("stopped", str(error)))
    except KeyboardInterrupt:
        send.send(("stopped", "stopped as asked. Run the same command again to continue."))
    except KnobctlError as error:
        send.send(("failed", str(error)))
    except Exception as error:  # a bug: the parent names it, and the traceback goes to stderr
        send.send(("failed", f"{type(error).__name__}: {' '.join(str(error).split())}"))
        raise
    else:
        send.send(("done", ""))
