"""The ranks of `torchrun`: each takes its share of the samples, exactly once; the first merges the shares.

A rank writes a cache of its own beside the one asked for (`<out>.ranks/<rank>-of-<ranks>`), so a run that is started
again needs only what was missing. Which samples a rank takes changes no row.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ...data.cache.manifest import MANIFEST_NAME, Manifest
from ...data.cache.merge import merge_caches
from ...data.cache.run_record import Shard
from ...data.errors import KnobctlError
from ..latency.device_lock import SharedDevice
from ..run.config import PrecomputeConfig
from ..run.inputs import Fixed, Inputs, check_shares, fix, fixed_before, load_inputs
from ..run.sample import Known
from ..run.shard import run_shard, summary

MEETING_S = 240.0  # within which all ranks must have started
# Ranks wait for the one that is slowest to do its share, which may take days.
_PATIENCE = datetime.timedelta(days=30)

_ADVICE = "start with torchrun, which sets them, or unset RANK and WORLD_SIZE."

FindKnown = Callable[[PrecomputeConfig, Inputs, Fixed], Known]


@dataclass(frozen=True)
class Launch:
    """This process among those of a launcher."""

    rank: int
    count: int
    local_rank: int

    @classmethod
    def from_environment(cls) -> Launch | None:
        """Returns what `torchrun` says, or None without it and for a single process.

        Raises:
            KnobctlError: the environment says something that cannot be.
        """
        if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
            return None
        rank, count, local_rank = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if not 0 <= rank < count or local_rank < 0:
            raise KnobctlError(
                f"the environment says RANK {rank}, LOCAL_RANK {local_rank} and WORLD_SIZE {count}, but ranks count "
                f"from 0 and lie below WORLD_SIZE: {_ADVICE}"
            )
        if count == 1:
            return None
        port = _number("MASTER_PORT", default="")
        if not os.environ.get("MASTER_ADDR", "").strip() or not 0 < port < 1 << 16:
            raise KnobctlError(
                f"{count} ranks meet at MASTER_ADDR and MASTER_PORT, and the environment says "
                f"{os.environ.get('MASTER_ADDR', '')!r} and {port}: {_ADVICE}"
            )
        return cls(rank, count, local_rank)


def _number(name: str, default: str = "0") -> int:
    text = os.environ.get(name, default)
    try:
        return int(text)
    except ValueError as error:
        raise KnobctlError(f"the environment says {name} {text!r}, which is not a whole number: {_ADVICE}") from error


def precompute_ranks(config: PrecomputeConfig, launch: Launch, find_known: FindKnown) -> dict[str, Any]:
    """Runs this rank's share; the first rank then merges all. Every rank returns the merged cache's summary.

    Raises:
        KnobctlError: this rank or another one failed.
    """
    if config.shard.count > 1:
        raise KnobctlError("--shard and torchrun both divide the samples: use one of them.")
    started = time.perf_counter()
    home = config.out.parent / f"{config.out.name}.ranks"
    mine = replace(
        config,
        out=share_directory(home, launch.rank, launch.count),
        device=_own_device(config.device, launch),
        like=None,
    )
    with process_group(launch):
        inputs = load_inputs(mine)
        check_shares(len(inputs.samples), launch.count)
        if (config.out / MANIFEST_NAME).is_file():
            _from_first(launch, lambda: _check_finished(replace(config, device=mine.device), inputs, find_known))
        else:
            first = replace(config, out=share_directory(home, 0, launch.count), device=mine.device)
            fixed = _from_first(launch, lambda: fixed_before(first) or fix(first, inputs))
            lock = home / f".device-{socket.gethostname()}-{mine.device.replace(':', '-')}.lock"
            _share(launch)(
                lambda: run_shard(
                    replace(mine, shard=Shard(launch.rank, launch.count), like=first.out if launch.rank else None),
                    inputs,
                    fixed,
                    find_known(mine, inputs, fixed),
                    turn=SharedDevice(lock),
                )
            )
            _from_first(launch, lambda: merge_shares(home, launch.count, config.out))
        manifest = Manifest.read(config.out)
    return summary(config, manifest, len(inputs.samples), time.perf_counter() - started)


def _own_device(device: str, launch: Launch) -> str:
    return f"cuda:{launch.local_rank % max(torch.cuda.device_count(), 1)}" if device == "cuda" else device


def _check_finished(config: PrecomputeConfig, inputs: Inputs, find_known: FindKnown) -> None:
    """Raises KnobctlError when the finished cache is of another request; runs nothing."""
    fixed = fixed_before(config)
    if fixed is None:
        raise KnobctlError(f"{config.out} was not made by precompute: choose another directory.")
    run_shard(config, inputs, fixed, find_known(config, inputs, fixed))


def share_directory(home: Path, index: int, count: int) -> Path:
    """Where one process of several writes its share."""
    return home / f"{index}-of-{count}"


def merge_shares(home: Path, count: int, out: Path) -> None:
    """Merges the shares of all processes into `out` and removes them."""
    merge_caches([share_directory(home, index, count) for index in range(count)], out)
    shutil.rmtree(home)


@contextmanager
def process_group(launch: Launch, meeting_s: float = MEETING_S) -> Iterator[None]:
    """Joins the ranks, all of which must come within `meeting_s`, and leaves them whatever happens."""
    end = time.monotonic() + meeting_s
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, _, _ = next(
            dist.rendezvous("env://", launch.rank, launch.count, timeout=datetime.timedelta(seconds=meeting_s))
        )
        # The patience for work, which the group has, would also be its patience for a rank that never starts.
        names = [f"knobctl-rank-{rank}" for rank in range(launch.count)]
        store.set(names[launch.rank], "here")
        for name in names:
            store.wait([name], datetime.timedelta(seconds=max(end - time.monotonic(), 1)))
        dist.init_process_group("gloo", store=store, rank=launch.rank, world_size=launch.count, timeout=_PATIENCE)
    except RuntimeError as error:
        raise KnobctlError(
            f"rank {launch.rank} did not meet the other {launch.count - 1} at {place} within "
            f"{meeting_s:.0f} s: start all ranks at the same time, each with a RANK of its own. ({_short(error)})"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _in_words(launch: Launch) -> Iterator[None]:
    """Turns the RuntimeError of an exchange with a lost rank into a KnobctlError."""
    try:
        yield
    except RuntimeError as error:
        raise KnobctlError(
            f"rank {launch.rank} of {launch.count} lost another rank, which failed or was stopped: its message says "
            f"why. Start the same command again: what is committed stays. ({_short(error)})"
        ) from error


def _short(error: RuntimeError) -> str:
    return " ".join(str(error).split())[:160]


def _share(launch: Launch) -> Callable[[Callable[[], Any]], None]:
    """Runs this rank's work and then waits for all; a failure anywhere is everyone's failure."""

    def run(work: Callable[[], Any]) -> None:
        error: KnobctlError | None = None
        try:
            work()
        except KnobctlError as failure:
            error = failure
        messages = [json.loads(text) for text in _exchange(launch, json.dumps(None if error is None else str(error)))]
        if error is not None:
            raise error
        _raise_first(messages)

    return run


def _from_first(launch: Launch, work: Callable[[], Fixed | None]) -> Any:
    """Runs `work` on the first rank alone and returns its result, a `Fixed` or None, on every rank."""
    message: dict[str, Any] = {}
    if launch.rank == 0:
        try:
            result = work()
            message = {"fixed": None if result is None else result.to_dict()}
        except KnobctlError as failure:
            message = {"error": str(failure)}
    record = json.loads(_exchange(launch, json.dumps(message))[0])
    if "error" in record:
        raise KnobctlError(record["error"])
    return None if record["fixed"] is None else Fixed.from_dict(record["fixed"], "the first rank's message")


def _exchange(launch: Launch, text: str) -> list[str]:
    """Returns every rank's text. Bytes in tensors, since torch's calls for objects unpickle what comes."""
    mine = torch.tensor(list(text.encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(launch.count)]
    with _in_words(launch):
        dist.all_gather(lengths, torch.tensor([len(mine)]))
        padded = torch.zeros(int(max(lengths)), dtype=torch.uint8)
        padded[: len(mine)] = mine
        rows = [torch.zeros_like(padded) for _ in lengths]
        dist.all_gather(rows, padded)
    return [bytes(row[: int(length)].tolist()).decode() for row, length in zip(rows, lengths, strict=True)]


def _raise_first(messages: list[str | None]) -> None:
    for rank, message in enumerate(messages):
        if message is not None:
            raise KnobctlError(f"rank {rank} failed: {message}")
