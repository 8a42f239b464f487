"""`knobctl precompute` with a model: the frozen model under every knob setting of every sample, into a cache."""

from __future__ import annotations

from typing import Any

from ...data.cache.manifest import MANIFEST_NAME
from ...data.progress import SILENT, Progress
from ..run.config import PrecomputeConfig
from ..run.fixed import fixed_of
from ..run.inputs import load_inputs
from ..run.interrupt import Interrupted
from ..run.shard import complete_run, run_shard
from .ranks import Launch, precompute_ranks
from .workers import precompute_workers

__all__ = ["Interrupted", "PrecomputeConfig", "precompute"]


def precompute(config: PrecomputeConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Runs the model under every knob setting of every sample and writes the cache. Returns a JSON-able summary.

    Called again with the same config, it resumes. Under `torchrun` each rank runs a share of the samples; with
    `config.workers` each of that many processes does.

    Raises:
        KnobctlError: a problem the user can fix; Interrupted after SIGINT.
    """
    launch = Launch.from_environment()
    if launch is not None:
        config = launch.config(config)
        progress = progress if launch.rank == 0 else SILENT
    if (config.out / MANIFEST_NAME).is_file():
        return complete_run(config, progress)
    if launch is not None:
        return precompute_ranks(config, launch, progress)
    if config.workers > 1:
        return precompute_workers(config, progress)
    inputs = load_inputs(config, progress)
    return run_shard(config, inputs, fixed_of(config, inputs, progress), progress=progress)
