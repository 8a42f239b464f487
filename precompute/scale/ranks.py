"""The ranks of `torchrun`: the first rank coordinates, and every rank is a worker.

The first rank listens on a port and writes its address, with a random key, beside the cache (`<out>.ranks.address/`);
the other ranks connect to it. So ranks share storage and a network that they trust, as those of torch.distributed do.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

from ...data.cache.manifest import MANIFEST_NAME
from ...data.errors import CacheError, KnobctlError
from ...data.files.atomic import write_atomically
from ...data.files.bounded_json import dump_json, read_json
from ...data.files.json_fields import JsonFields
from ...data.progress import SILENT, Progress
from ..run.config import PrecomputeConfig
from ..run.interrupt import stop_on_interrupt
from .alone import Alone
from .coordinator import RESUME, Coordinator
from .processes import Processes
from .worker import CoordinatorLost, Message, PartWorker, Place, answer

MEETING_S = 240.0
HANDSHAKE_S = 10
SILENCE_S = 60  # in the middle of a message, after which its sender counts as lost
POLL_S = 0.5
ADDRESS_NAME = "address.json"
_ADVICE = "start with torchrun, which sets them, or unset RANK and WORLD_SIZE."


@dataclass(frozen=True)
class Launch:
    """This process's rank among the processes of a launcher."""

    rank: int
    count: int
    local_rank: int
    local_count: int | None = None

    @classmethod
    def from_environment(cls) -> Launch | None:
        """Returns what `torchrun` has set; None without it and for a single process.

        Raises:
            KnobctlError: the variables are malformed.
        """
        if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
            return None
        rank, count, local_rank = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if not 0 <= rank < count or local_rank < 0:
            raise KnobctlError(
                f"the environment says RANK {rank}, LOCAL_RANK {local_rank} and WORLD_SIZE {count}, but ranks start at "
                f"0 and are below WORLD_SIZE: {_ADVICE}"
            )
        return None if count == 1 else cls(rank, count, local_rank, _number("LOCAL_WORLD_SIZE") or None)

    def place(self, locks: Path) -> Place:
        """Returns the place of this rank's worker."""
        return Place(self.local_rank, self.local_count, locks)

    def check(self, config: PrecomputeConfig) -> None:
        """Raises KnobctlError if the config also asks for workers."""
        for name in ("workers", "ray"):
            if getattr(config, name) is not None:
                raise KnobctlError(f"--{name} and torchrun both start workers: use one of them.")


def _number(name: str) -> int:
    text = os.environ.get(name, "0")
    try:
        return int(text)
    except ValueError as error:
        raise KnobctlError(f"the environment says {name} {text!r}, which is not a whole number: {_ADVICE}") from error


def precompute_ranks(
    config: PrecomputeConfig, launch: Launch, progress: Progress = SILENT, *, meeting_s: float = MEETING_S
) -> dict[str, Any]:
    """Runs this rank's worker and, as the first rank, the coordinator. Every rank returns the cache's summary.

    Args:
        meeting_s: seconds within which a rank must reach the first one.

    Raises:
        KnobctlError: the run failed, or the first rank was lost or never started.
    """
    home = config.out.with_name(f"{config.out.name}.ranks.address")
    if launch.rank > 0:
        return _follow(config, home, launch, meeting_s)
    place = launch.place(home)
    with (
        _home(home),
        Processes(config, 1, slot=launch.local_rank, slots=place.slots, locks=home) as pool,
        _listening(home, pool),
    ):
        try:
            result = Coordinator(config, pool, progress).run()
        except KnobctlError as error:
            pool.farewell(str(error))
            raise
        pool.farewell(result)
        return result


@contextmanager
def _home(home: Path) -> Iterator[None]:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"{home} cannot be written ({error.strerror}): choose another --out.") from error
    try:
        yield
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _listening(home: Path, pool: Processes) -> Iterator[None]:
    """While the body runs, adds every worker that connects to the pool."""
    key = secrets.token_bytes(32)
    with _server() as server:
        host = os.environ.get("MASTER_ADDR", socket.gethostname())
        address = {"host": host, "port": server.getsockname()[1], "key": key.hex()}
        write_atomically(home / ADDRESS_NAME, dump_json(address))
        threading.Thread(target=_accept, args=(server, key, pool), daemon=True).start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)


def _server() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _accept(server: socket.socket, key: bytes, pool: Processes) -> None:
    while True:
        try:
            peer, _ = server.accept()
        except OSError:
            return  # closed
        try:
            connection = _connection(peer)
        except OSError:  # it has gone already
            peer.close()
            continue
        try:
            deliver_challenge(connection, key)
            answer_challenge(connection, key)
            place = connection.recv()
            _limit_reads(connection, SILENCE_S)
            pool.add(connection, place)
        except (OSError, EOFError, AuthenticationError):
            connection.close()  # another program, or a rank that has ended


def _connection(peer: socket.socket) -> Connection:
    """Returns a connection on which a host that has gone causes an OSError after a minute, if not earlier."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    connection = Connection(peer.detach())
    _limit_reads(connection, HANDSHAKE_S)
    return connection


def _limit_reads(connection: Connection, seconds: int) -> None:
    """Makes a read that takes longer raise OSError; 0: no limit."""
    with socket.socket(fileno=os.dup(connection.fileno())) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))


def _connect(home: Path) -> Connection:
    """Connects to the first rank, whose file may be one of an earlier start. Raises OSError or KnobctlError."""
    fields = JsonFields(read_json(home / ADDRESS_NAME, CacheError), str(home / ADDRESS_NAME), CacheError)
    host, port, key = fields.text("host"), fields.integer("port", 1, 65535), bytes.fromhex(fields.text("key"))
    connection = _connection(socket.create_connection((host, port), timeout=HANDSHAKE_S))
    try:
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
    except (OSError, EOFError, AuthenticationError) as error:
        connection.close()
        raise OSError(str(error)) from error
    return connection


def _follow(config: PrecomputeConfig, home: Path, launch: Launch, meeting_s: float) -> dict[str, Any]:
    """Serves the first rank. Returns the summary that it sends at the end."""
    lost = CoordinatorLost(f"rank 0 of {launch.count} is lost: its output may say why. {RESUME}")
    end = time.monotonic() + meeting_s
    while True:
        if (config.out / MANIFEST_NAME).is_file():
            return Coordinator(config, Alone(config)).run()
        try:
            connection = _connect(home)
            break
        except (OSError, CacheError) as error:
            if time.monotonic() > end:
                raise KnobctlError(
                    f"rank {launch.rank} could not reach rank 0 of {launch.count} within {meeting_s:.0f} s ({error}): "
                    f"start all ranks at the same time, with the same --out on storage that they share. {RESUME}"
                ) from error
            time.sleep(POLL_S)

    unread: list[tuple[Any, ...]] = []  # calls received while sending

    def receive() -> tuple[Any, ...]:
        try:
            return unread.pop() if unread else connection.recv()
        except (OSError, EOFError) as error:
            raise lost from error

    def send(message: Message | Place) -> None:
        try:
            connection.send(message)
        except OSError:  # it has ended, and its farewell may be unread
            unread.append(receive())

    send(launch.place(home))
    _limit_reads(connection, 0)  # the first worker may take hours to prepare the run
    worker = PartWorker(config)
    with stop_on_interrupt():  # the first rank decides when the run stops
        while True:
            call = receive()
            if call[0] != "end":
                answer(worker, call, send)
            elif isinstance(call[1], dict):
                return call[1]
            else:
                raise KnobctlError(call[1])
