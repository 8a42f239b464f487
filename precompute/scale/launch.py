"""`knobctl precompute` with a model: the frozen model under every knob setting of every sample, into a cache."""

from __future__ import annotations

from typing import Any

from ...data.cache.manifest import MANIFEST_NAME
from ..run.config import PrecomputeConfig
from ..run.inputs import Fixed, Inputs, fix, fixed_before, load_inputs
from ..run.recorded import recorded_answers
from ..run.sample import Known
from ..run.shard import Interrupted, run_shard
from .ranks import Launch, precompute_ranks
from .workers import precompute_workers

__all__ = ["Interrupted", "PrecomputeConfig", "precompute"]


def precompute(config: PrecomputeConfig) -> dict[str, Any]:
    """Runs the model under every knob setting of every sample and writes the cache. Returns a JSON-able summary.

    Run again with the same config it goes on where it was. Under `torchrun` each rank takes its share,
    with `config.workers` each of that many processes.

    Raises:
        KnobctlError: whatever the user can mend; Interrupted after SIGINT.
    """
    launch = Launch.from_environment()
    if launch is not None:
        return precompute_ranks(config, launch, find_known)
    if config.workers > 1 and not (config.out / MANIFEST_NAME).is_file():
        return precompute_workers(config, find_known)
    inputs = load_inputs(config)
    fixed = fixed_before(config) or fix(config, inputs)
    return run_shard(config, inputs, fixed, find_known(config, inputs, fixed))


def find_known(config: PrecomputeConfig, inputs: Inputs, fixed: Fixed) -> Known:
    """Returns the answers of recorded results (`--from-results` with `--model`); none without them."""
    return Known() if config.from_results is None else recorded_answers(config, inputs, fixed)
