"""Worker processes of one machine (`--workers`): each takes its share of the samples; the shares are then merged.

On the CPU each worker keeps to cores of its own, so latencies are those of a machine whose other cores work as well. On
one accelerator workers share it, and latency runs have it alone. As with ranks, a worker writes a cache of its own
beside the one asked for (`<out>.workers/<worker>-of-<workers>`), so a run that is started again needs only what is
missing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from ...data.cache.manifest import Manifest
from ...data.cache.run_record import Shard
from ...data.errors import KnobctlError
from ..latency.device_lock import SharedDevice
from ..models.progress import quiet
from ..run.config import PrecomputeConfig
from ..run.inputs import Fixed, check_shares, fix, fixed_before, load_inputs
from ..run.shard import Interrupted, run_shard, stop_on_interrupt, summary
from .ranks import FindKnown, merge_shares, share_directory

# A fork of this process would inherit torch's threads and the locks that they hold; the server has only imported.
_FORKS = multiprocessing.get_context("forkserver")


def precompute_workers(config: PrecomputeConfig, find_known: FindKnown) -> dict[str, Any]:
    """Runs every worker's share and merges all. Returns the merged cache's summary.

    Raises:
        Interrupted: after SIGINT, when every worker has committed the part in hand.
        KnobctlError: a worker failed (the others have finished), or the machine has fewer cores than workers.
    """
    started = time.perf_counter()
    cores = _cores_of_workers(config)
    home = config.out.parent / f"{config.out.name}.workers"
    if (config.out / "run.json").is_file() and not home.is_dir():
        raise KnobctlError(f"{config.out} was begun by one process: go on without --workers, or remove it.")
    inputs = load_inputs(config)
    check_shares(len(inputs.samples), config.workers)
    shares = [
        replace(
            config,
            workers=1,
            out=share_directory(home, index, config.workers),
            shard=Shard(index, config.workers),
            like=share_directory(home, 0, config.workers) if index else None,
        )
        for index in range(config.workers)
    ]
    fixed = fixed_before(shares[0]) or fix(shares[0], inputs)
    _FORKS.set_forkserver_preload([__name__])
    with stop_on_interrupt() as stop_asked:
        workers = [_Worker(*share_and_cores, fixed, find_known) for share_and_cores in zip(shares, cores, strict=True)]
        while any(worker.running for worker in workers):
            wait([worker.said for worker in workers if worker.running], timeout=0.5)
            for worker in workers:
                worker.listen(stop=stop_asked())
    _raise_first([worker.error for worker in workers])
    merge_shares(home, config.workers, config.out)
    return summary(config, Manifest.read(config.out), len(inputs.samples), time.perf_counter() - started)


def _cores_of_workers(config: PrecomputeConfig) -> list[list[int] | None]:
    """Returns the cores that each worker keeps to; None where the device is no CPU."""
    if config.device != "cpu":
        return [None] * config.workers
    cores = sorted(os.sched_getaffinity(0))
    if config.workers * config.sweep_threads > len(cores):
        raise KnobctlError(
            f"{config.workers} workers of {config.sweep_threads} thread(s) each are more than the {len(cores)} core(s) "
            "that this process may use: use fewer, or latencies would be those of workers that wait for each other."
        )
    return [cores[index :: config.workers] for index in range(config.workers)]


class _Worker:
    """One process, as the parent sees it."""

    def __init__(self, share: PrecomputeConfig, cores: list[int] | None, fixed: Fixed, find_known: FindKnown) -> None:
        self.said, send = _FORKS.Pipe(duplex=False)
        self.error: KnobctlError | None = None
        self.running = True
        self._index = share.shard.index
        self._ready = self._stopped = False
        self._process = _FORKS.Process(target=_work, args=(share, cores, fixed, find_known, send), daemon=True)
        with _sigint_ignored():  # until it says that it can be stopped
            self._process.start()
        send.close()

    def listen(self, *, stop: bool) -> None:
        """Takes in what the worker says; passes the user's wish to stop on to it, once."""
        while self.running and self.said.poll():
            try:
                kind, text = self.said.recv()
            except EOFError:
                self._process.join()
                kind, text = "failed", _cause_of_death(self._process.exitcode)
            if kind == "ready":
                self._ready = True
                continue
            self.running = False
            self._process.join()
            if kind == "stopped":
                self.error = Interrupted(text)
            elif kind == "failed":
                self.error = KnobctlError(f"worker {self._index} failed: {text}")
        if stop and self.running and self._ready and not self._stopped and self._process.pid is not None:
            os.kill(self._process.pid, signal.SIGINT)
            self._stopped = True


def _cause_of_death(exitcode: int | None) -> str:
    """Says how a process ended that could not say it itself."""
    if exitcode is not None and exitcode < 0:
        number = -exitcode
        name = signal.Signals(number).name if number in signal.valid_signals() else "unknown"
        hint = ": the system may have run out of memory" if name == "SIGKILL" else ""
        return f"it was ended by signal {number} ({name}){hint}. Run the same command again to go on."
    return f"it ended with exit code {exitcode}; what it wrote to stderr says why."


@contextmanager
def _sigint_ignored() -> Iterator[None]:
    """A process started in the body ignores SIGINT until it says otherwise."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread, which alone may set handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(
    share: PrecomputeConfig, cores: list[int] | None, fixed: Fixed, find_known: FindKnown, send: Connection
) -> None:
    """One worker's share. Sends `ready`, then `done`, or `stopped` or `failed` and why."""
    os.setpgid(0, 0)  # a terminal's SIGINT comes by the parent alone, or it would come twice
    signal.signal(signal.SIGINT, signal.default_int_handler)
    send.send(("ready", ""))
    if cores is not None:
        os.sched_setaffinity(0, cores)
    turn = None
    if cores is None:
        turn = SharedDevice(share.out.parent / f".device-{share.device.replace(':', '-')}.lock")
    try:
        with quiet(share.shard.index > 0):  # one bar is enough: shares are equal
            inputs = load_inputs(share)
            run_shard(share, inputs, fixed, find_known(share, inputs, fixed), turn=turn)
    except Interrupted as error:
        send.send(("stopped", str(error)))
    except KeyboardInterrupt:
        send.send(("stopped", f"stopped as asked. Run the same command again to go on in {share.out}."))
    except KnobctlError as error:
        send.send(("failed", str(error)))
    except Exception as error:  # the parent names it; the traceback goes to stderr, as of any bug
        send.send(("failed", f"{type(error).__name__}: {' '.join(str(error).split())}"))
        raise
    else:
        send.send(("done", ""))


def _raise_first(errors: Sequence[KnobctlError | None]) -> None:
    """Raises a failure if there is one, and an interruption otherwise."""
    found = [error for error in errors if error is not None]
    for error in sorted(found, key=lambda error: isinstance(error, Interrupted)):
        raise error
