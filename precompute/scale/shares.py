"""The shares of a run that several processes divide: where each is written, and how they become one cache.

A share is a `--shard` whose directory is beside the cache (`<out>.ranks/1-of-4`), so a restarted run computes
only what is missing. The division of the samples does not affect the rows.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from ...data.cache.merge import merge_caches
from ...data.cache.run_record import Shard
from ..run.config import PrecomputeConfig


def shares_home(out: Path, kind: str) -> Path:
    """Returns the directory that contains the shares of the cache `out`. `kind` is `ranks` or `workers`."""
    return out.parent / f"{out.name}.{kind}"


def share_directory(home: Path, index: int, count: int) -> Path:
    """Returns the directory of one share."""
    return home / f"{index}-of-{count}"


def share_config(config: PrecomputeConfig, home: Path, index: int, count: int) -> PrecomputeConfig:
    """Returns the request for one share: as `--shard INDEX/COUNT`, with `--like` the first share."""
    return replace(
        config,
        workers=1,
        out=share_directory(home, index, count),
        shard=Shard(index, count),
        like=share_directory(home, 0, count) if index else None,
    )


def merge_shares(home: Path, count: int, out: Path) -> None:
    """Merges all shares into `out` and removes them."""
    merge_caches([share_directory(home, index, count) for index in range(count)], out)
    shutil.rmtree(home)
