"""The pool of actors on a Ray cluster (`--ray`): one for each GPU or, on the CPU, for each group of cores.

Actors are created while there is work and room for them, so workers may join and leave at any time. This process is
the coordinator; if it ends, Ray ends its actors. Every wait for Ray has a deadline.
"""

from __future__ import annotations

import io
import logging
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass, replace
from typing import Any, TextIO

import ray
from ray.exceptions import RayActorError, RayError

from ...data.errors import KnobctlError
from ..run.config import PrecomputeConfig
from .coordinator import RESUME, Handle
from .worker import Message, PartWorker, Place, answer

REACH_S = 10.0  # within which the cluster's address must accept a connection
GET_S = 60.0  # within which a message that is ready must arrive
LOOK_S = 5.0  # between two looks at the size of the cluster
MAX_REASON = 300


class _Actor:
    """Serves one worker. Calls run in a thread of their own, so that their progress can be read meanwhile."""

    def __init__(self, config: PrecomputeConfig, directory: str) -> None:
        if os.path.isdir(directory):
            os.chdir(directory)  # relative paths mean the same as for the driver
        self._calls: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=self._serve, args=(PartWorker(config),), daemon=True).start()

    def _serve(self, worker: PartWorker) -> None:
        while True:
            answer(worker, self._calls.get(), self._messages.put)

    def place(self) -> Place:
        return Place(node=ray.get_runtime_context().get_node_id())

    def call(self, *call: Any) -> Iterator[Message]:
        self._calls.put(call)
        while True:
            message = self._messages.get()
            yield message
            if message.kind in ("result", "failed"):
                return


class _ExceptRay(io.TextIOBase):
    """A stdout without the pages that a thread of Ray prints about lost workers and nodes, which the run reports."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str, /) -> int:
        is_ray = threading.current_thread().name.startswith("ray_")
        return len(text) if is_ray else self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


@dataclass
class _Handle:
    """The driver's view of one actor."""

    actor: Any
    waiting: Any  # the reference to its place, then the generator of the messages of its call; None: idle
    place: Place | None = None


class RayActors:
    """The workers of a run on the cluster `config.ray`, at most `config.workers`.

    Raises:
        KnobctlError: the cluster cannot be reached or runs other versions, or has no room for a worker within
            `config.ray_wait` seconds.
    """

    is_alone = False

    def __init__(self, config: PrecomputeConfig) -> None:
        self._config = config
        threads = config.sweep_threads
        self._need = {"CPU": float(threads)} if config.device == "cpu" else {"CPU": 1.0, "GPU": 1.0}
        self._actors: dict[int, _Handle] = {}
        self._count = self._room = 0
        self._looked_at = -LOOK_S
        self._shared: dict[int, tuple[Any, Any]] = {}
        self._exit = ExitStack()

    def __enter__(self) -> RayActors:
        with ExitStack() as stack:
            stack.enter_context(redirect_stdout(_ExceptRay(sys.stdout)))
            if not ray.is_initialized():  # otherwise the caller's connection is used and left open
                stack.callback(ray.shutdown)
                _connect(str(self._config.ray), self._need)
            stack.callback(self._kill_all)
            self._exit = stack.pop_all()
        self._alone_since = time.monotonic()
        self._remote: Any = ray.remote(_Actor)
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _kill_all(self) -> None:
        for number in list(self._actors):
            self.kill(number)

    @property
    def size(self) -> int:
        """The number of workers."""
        return len(self._actors)

    def fill(self, wanted: int) -> None:
        """Creates actors. Those for which there is no room wait in Ray, whose autoscaler sees them."""
        if time.monotonic() - self._looked_at > LOOK_S:
            self._looked_at = time.monotonic()
            self._room = sum(_room(node["Resources"], self._need) for node in ray.nodes() if node["Alive"])
        wanted = min(wanted, self._config.workers or max(self._room, 1))
        while len(self._actors) < wanted:
            options = {"num_cpus": self._need["CPU"], "num_gpus": self._need.get("GPU", 0)}
            actor: Any = self._remote.options(**options, max_restarts=0).remote(self._config, os.getcwd())
            self._actors[self._count] = _Handle(actor, actor.place.remote())
            self._count += 1

    def call(self, worker: int, *call: Any) -> None:
        """Calls the actor. Arguments of `begin`, the same for all, are stored once in Ray's object store."""
        if call[0] == "begin":
            call = ("begin", *(self._share(argument) for argument in call[1:]))
        handle = self._actors[worker]
        handle.waiting = handle.actor.call.options(num_returns="streaming").remote(*call)

    def _share(self, value: Any) -> Any:
        _, reference = self._shared.setdefault(id(value), (value, None))
        if reference is None:
            reference = ray.put(value)
            self._shared[id(value)] = value, reference
        return reference

    def wait(self, handle: Handle, timeout_s: float) -> None:
        """Handles the messages that arrive."""
        waiting = {one.waiting: number for number, one in self._actors.items() if one.waiting is not None}
        if any(one.place is not None for one in self._actors.values()):
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since > self._config.ray_wait:
            raise KnobctlError(self._missing())
        if not waiting:
            time.sleep(timeout_s)
            return
        ready, rest = ray.wait(list(waiting), num_returns=1, timeout=timeout_s)
        if ready and rest:
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for one in ready:
            self._listen(waiting[one], handle)

    def _listen(self, number: int, handle: Handle) -> None:
        one = self._actors[number]
        try:
            if one.place is None:
                place = ray.get(one.waiting, timeout=GET_S)
                one.place, one.waiting = self._with_slot(place), None
                handle(number, Message("joined", one.place))
                return
            while one.waiting is not None and one.waiting.next_ready():
                message = ray.get(next(one.waiting), timeout=GET_S)
                if message.kind in ("result", "failed"):
                    one.waiting = None
                handle(number, message)
        except (RayError, StopIteration) as error:
            self.kill(number)
            handle(number, Message("lost", (_reason(error), self._may_be_to_blame(one, error))))

    def _with_slot(self, place: Place) -> Place:
        """Gives a worker on the CPU its number on its machine; Ray gives one with a GPU a device of its own."""
        if self._config.device != "cpu":
            return place
        places = [one.place for one in self._actors.values() if one.place is not None]
        taken = {other.slot for other in places if other.host == place.host}
        return replace(place, slot=next(slot for slot in range(len(taken) + 1) if slot not in taken))

    def _may_be_to_blame(self, one: _Handle, error: BaseException) -> bool:
        """Returns whether the part of a lost actor may be why: not if its node was lost or preempted."""
        if isinstance(error, RayActorError) and error.preempted:
            return False
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return one.place is None or one.place.node in alive

    def kill(self, worker: int) -> None:
        """Ends an actor."""
        one = self._actors.pop(worker)
        with suppress(RayError):
            ray.kill(one.actor, no_restart=True)

    def _missing(self) -> str:
        total, free = ray.cluster_resources(), ray.available_resources()
        lines = [
            f"{amount:g} {name} (the cluster has {total.get(name, 0):g}, of which {free.get(name, 0):g} free)"
            for name, amount in self._need.items()
        ]
        advice = "add nodes or wait for other jobs" if total.get("GPU") or "GPU" not in self._need else "--device cpu"
        return (
            f"no worker has started on the Ray cluster within {self._config.ray_wait:g} s (--ray-wait). Each needs "
            f"{' and '.join(lines)}: {advice}. {RESUME}"
        )


def _room(resources: dict[str, float], need: dict[str, float]) -> int:
    """Returns how many workers fit on a node."""
    return int(min(resources.get(name, 0.0) // amount for name, amount in need.items()))


def _connect(address: str, need: dict[str, float]) -> None:
    """Connects this process to the cluster, or starts one for `local`. Raises KnobctlError."""
    where = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if "://" in where:
        raise KnobctlError(
            f"--ray {where}: Ray Client is not supported. Run the command on a node of the cluster with --ray, for "
            "instance with `ray job submit`."
        )
    if ":" in where:
        host, _, port = where.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
        except (OSError, ValueError) as error:
            raise KnobctlError(f"no Ray cluster can be reached at {where} ({error}): check --ray HOST:PORT.") from error
    options: dict[str, Any] = {"address": where}
    if where == "local":
        cores = len(os.sched_getaffinity(0))
        options |= {"num_cpus": cores, "include_dashboard": False}
        if cores < need["CPU"]:
            raise KnobctlError(
                f"a worker needs {need['CPU']:g} cores, but this process may use {cores}: lower --threads."
            )
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (RayError, RuntimeError, ConnectionError, ValueError) as error:
        python = ".".join(map(str, sys.version_info[:3]))
        raise KnobctlError(
            f"--ray {where}: {_reason(error)} (This is Ray {ray.__version__} on Python {python}.)"
        ) from error


def _reason(error: BaseException) -> str:
    """Returns the first sentences of Ray's messages, of which those about lost actors fill a page."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, RayActorError):
        text = (text.partition("The actor is dead because ")[2] or text).partition(". ")[0]
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."
