"""A worker: loads the model once and runs the parts that the coordinator gives it.

It answers calls with messages, the same over a pipe, a socket or Ray: (kind, value), where kind is `note`, `begin`,
`step` and `end` of a progress bar, and at last `result`, or `failed` with the reason.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ... import __version__
from ...data.datasets.sample_set import SampleSet
from ...data.errors import KnobctlError
from ...data.progress import SILENT, Progress
from ..execution.knob_model import KnobModel
from ..latency.device_lock import SharedDevice
from ..run.config import PrecomputeConfig
from ..run.fixed import Fixed, fix
from ..run.inputs import load_inputs, load_knobs, with_sets
from ..run.shard import Part, PartRunner, Share


class Message(NamedTuple):
    """One message of a worker to the coordinator."""

    kind: str
    value: Any = None


Send = Callable[[Message], object]


class CoordinatorLost(KnobctlError):
    """The coordinator has ended, or cannot be reached."""


@dataclass(frozen=True)
class Place:
    """Where a worker runs."""

    slot: int | None = None  # its number among the workers of its machine; None: it has the machine or its device alone
    slots: int | None = None  # how many workers the machine has; None: as many as its cores allow
    locks: Path | None = None  # directory of lock files, where workers may share a device
    host: str = field(default_factory=socket.gethostname)
    node: str | None = None  # of a Ray cluster
    version: str = __version__


class PartWorker:
    """Runs parts of the config's share. Called in this order: `load`, then `prepare` or `begin`, then `run`."""

    def __init__(self, config: PrecomputeConfig) -> None:
        self._config = config
        self._turn: SharedDevice | None = None
        self._knobs: KnobModel | None = None
        self._runner: PartRunner | None = None

    def load(self, place: Place, progress: Progress = SILENT) -> None:
        """Takes the worker's own device, or its own cores, and loads the model."""
        if place.slot is not None:
            name = device = own_device(self._config.device, place.slot)
            if device == "cpu":
                cores = own_cores(sorted(os.sched_getaffinity(0)), place.slot, place.slots, self._config.sweep_threads)
                os.sched_setaffinity(0, cores)
                name = f"cpu-{cores[0]}"
            self._config = replace(self._config, device=device)
            if place.locks is not None:
                self._turn = SharedDevice(place.locks / f"{place.host}-{name.replace(':', '-')}.lock")
        self._knobs = load_knobs(self._config, progress)

    def prepare(self, fixed: Fixed | None, progress: Progress = SILENT) -> Share:
        """Reads the samples and, unless it is given, determines what the run depends on; for the first worker."""
        inputs = load_inputs(self._config, progress, self._knobs)
        fixed = fixed or fix(self._config, inputs, progress)
        self._runner = PartRunner(self._config, inputs, fixed, self._turn, progress)
        return self._runner.share()

    def begin(self, sets: tuple[SampleSet, ...], fixed: Fixed, progress: Progress = SILENT) -> dict[str, Any]:
        """Takes what the first worker prepared. Returns what the run depends on as this worker sees it."""
        assert self._knobs is not None, "`load` comes first"
        self._runner = PartRunner(self._config, with_sets(self._knobs, sets), fixed, self._turn, progress)
        return self._runner.record

    def run(self, sample_ids: Sequence[str], progress: Progress = SILENT) -> Part:
        """Runs one part."""
        assert self._runner is not None, "`prepare` or `begin` comes first"
        return self._runner.run(sample_ids, progress)


def own_device(device: str, slot: int, count: Callable[[], int] = torch.cuda.device_count) -> str:
    """Returns the device of the worker with number `slot`: `cuda` becomes one of the machine's devices, in turn."""
    return f"cuda:{slot % max(count(), 1)}" if device == "cuda" else device


def own_cores(cores: Sequence[int], slot: int, slots: int | None, threads: int) -> Sequence[int]:
    """Returns the cores of the worker with number `slot` of `slots`. Workers that do not fit share those of others."""
    fit = max(len(cores) // threads, 1)
    slots = min(slots or fit, fit)
    return cores[slot % slots :: slots]


def answer(worker: PartWorker, call: tuple[Any, ...], send: Send) -> None:
    """Calls a method of the worker, `(name, *arguments)`, and sends its progress and its result."""
    name, *arguments = call
    try:
        result = getattr(worker, name)(*arguments, SentProgress(send))
    except CoordinatorLost:
        raise
    except KnobctlError as error:
        send(Message("failed", str(error)))
    except Exception as error:  # a bug: the coordinator names it, and the traceback goes to the worker's stderr
        logging.getLogger(__name__).exception("%s failed", name)
        send(Message("failed", f"{type(error).__name__}: {' '.join(str(error).split())}"))
    else:
        send(Message("result", result))


class SentProgress(Progress):
    """Sends notes and steps to the coordinator, which shows them."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def note(self, text: str) -> None:
        self._send(Message("note", text))

    @contextmanager
    def steps(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        self._send(Message("begin", (title, total, done)))

        def advance() -> None:
            self._send(Message("step"))

        yield advance
        self._send(Message("end"))
