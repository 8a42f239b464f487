"""Worker processes on one machine (`--workers`): each runs a share of the samples; the shares are then merged.

On the CPU each worker is pinned to its own cores, so latencies are those of a machine whose other cores are busy too.
Workers on one accelerator share it, but each latency run uses it exclusively.

The parent loads the model and the samples, fixes importance scores and budgets, and releases the model. A worker
receives the samples, which read their images when needed, and loads the model.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

import torch

from ...data.cache.manifest import RUN_NAME
from ...data.datasets.sample_set import SampleSet
from ...data.errors import KnobctlError
from ...data.progress import SILENT, Progress
from ..latency.device_lock import SharedDevice
from ..run.config import PrecomputeConfig
from ..run.fixed import Fixed, fixed_of
from ..run.inputs import load_inputs, load_knobs, with_sets
from ..run.shard import run_shard, summary
from .processes import FORKS, run_processes
from .shares import merge_shares, share_config, shares_home


def precompute_workers(config: PrecomputeConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Runs every worker's share and merges all. Returns the merged cache's summary.

    Raises:
        Interrupted: after SIGINT, once every worker has committed its current part.
        KnobctlError: a worker failed (the others have finished), or the machine has fewer cores than workers.
    """
    started = time.perf_counter()
    cores = _cores_of_workers(config)
    home = shares_home(config.out, "workers")
    if (config.out / RUN_NAME).is_file() and not home.is_dir():
        raise KnobctlError(f"{config.out} was started by one process: continue without --workers, or remove it.")
    shares = [share_config(config, home, index, config.workers) for index in range(config.workers)]
    sets, fixed, num_samples = _prepare(shares[0], progress)
    torch.cuda.empty_cache()
    works = [partial(_run_share, share, sets, fixed, own) for share, own in zip(shares, cores, strict=True)]
    FORKS.set_forkserver_preload([__name__])
    with progress.steps("samples", num_samples) as advance:
        run_processes(works, progress, advance)
    merge_shares(home, config.workers, config.out)
    return summary(config, num_samples, time.perf_counter() - started)


def _prepare(first: PrecomputeConfig, progress: Progress) -> tuple[tuple[SampleSet, ...], Fixed, int]:
    """Returns the samples and what is fixed. The model is released on return: the workers need its memory."""
    inputs = load_inputs(first, progress)
    return inputs.sets, fixed_of(first, inputs, progress), len(inputs.samples)


def _run_share(
    share: PrecomputeConfig,
    sets: tuple[SampleSet, ...],
    fixed: Fixed,
    cores: list[int] | None,
    progress: Progress,
) -> None:
    """Runs one worker's share, in the worker."""
    turn = None
    if cores is None:
        turn = SharedDevice(share.out.parent / f".device-{share.device.replace(':', '-')}.lock")
    else:
        os.sched_setaffinity(0, cores)
    run_shard(share, with_sets(load_knobs(share, progress), sets), fixed, turn=turn, progress=progress)


def _cores_of_workers(config: PrecomputeConfig) -> list[list[int] | None]:
    """Returns the cores to which each worker is pinned; None if the device is not the CPU."""
    if config.device != "cpu":
        return [None] * config.workers
    cores = sorted(os.sched_getaffinity(0))
    if config.workers * config.sweep_threads > len(cores):
        raise KnobctlError(
            f"{config.workers} workers of {config.sweep_threads} thread(s) each are more than the {len(cores)} core(s) "
            "that this process may use: use fewer, or the workers would wait for each other while they are timed."
        )
    return [cores[index :: config.workers] for index in range(config.workers)]
