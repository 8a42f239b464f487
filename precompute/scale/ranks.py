"""The ranks of `torchrun`: rank R of N runs `--shard R/N`; the first rank merges the shares.

Ranks share the output directory and communicate only through files there: the first rank's `run.json`, each share's
`cache.json`, and the heartbeats. Each rank writes its share beside the cache (`<out>.ranks/<rank>-of-<ranks>`).
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...data.cache.manifest import MANIFEST_NAME, RUN_NAME
from ...data.errors import KnobctlError
from ...data.progress import SILENT, Progress
from ..latency.device_lock import SharedDevice
from ..run.config import PrecomputeConfig
from ..run.fixed import fixed_of
from ..run.inputs import load_inputs
from ..run.shard import run_shard, summary
from .heartbeat import Heartbeat, Peers
from .shares import merge_shares, share_config, share_directory, shares_home

_ADVICE = "start with torchrun, which sets them, or unset RANK and WORLD_SIZE."


@dataclass(frozen=True)
class Launch:
    """This process's rank among the processes of a launcher."""

    rank: int
    count: int
    local_rank: int

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
        return None if count == 1 else cls(rank, count, local_rank)

    def config(self, config: PrecomputeConfig) -> PrecomputeConfig:
        """Returns the config with this rank's own device. Raises KnobctlError if it also has shards or workers."""
        if config.shard.count > 1:
            raise KnobctlError("--shard and torchrun both divide the samples: use one of them.")
        if config.workers > 1:
            raise KnobctlError("--workers and torchrun both divide the samples: use one of them.")
        if config.device != "cuda":
            return config
        return replace(config, device=f"cuda:{self.local_rank % max(torch.cuda.device_count(), 1)}")


def _number(name: str) -> int:
    text = os.environ.get(name, "0")
    try:
        return int(text)
    except ValueError as error:
        raise KnobctlError(f"the environment says {name} {text!r}, which is not a whole number: {_ADVICE}") from error


def precompute_ranks(config: PrecomputeConfig, launch: Launch, progress: Progress = SILENT) -> dict[str, Any]:
    """Runs this rank's share; the first rank then merges all. Every rank returns the merged cache's summary.

    Raises:
        KnobctlError: this rank or another one failed, was lost or never started.
    """
    started = time.perf_counter()
    home = shares_home(config.out, "ranks")
    mine = share_config(config, home, launch.rank, launch.count)
    shares = [share_directory(home, rank, launch.count) for rank in range(launch.count)]
    peers = Peers(home, launch.rank, launch.count)
    with Heartbeat(home, launch.rank, launch.count):
        peers.meet()
        inputs = load_inputs(mine, progress)
        if launch.rank > 0:
            peers.wait_for([shares[0] / RUN_NAME])
        fixed = fixed_of(mine, inputs, progress)
        lock = home / f".device-{socket.gethostname()}-{mine.device.replace(':', '-')}.lock"
        run_shard(mine, inputs, fixed, turn=SharedDevice(lock), progress=progress)
        if launch.rank == 0:
            peers.wait_for([share / MANIFEST_NAME for share in shares])
            merge_shares(home, launch.count, config.out)
        else:
            peers.wait_for([config.out / MANIFEST_NAME])
    return summary(config, len(inputs.samples), time.perf_counter() - started)
