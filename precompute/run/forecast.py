"""The dry run: times a few samples in full and extrapolates to the whole run."""

from __future__ import annotations

import io
import math
import random
import resource
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ...controllers.budget_encoder import encoder_bytes
from ...data.budgets import DEFAULT_BUDGETS, normalise_budgets
from ...data.plans import ImportanceScores
from ...data.progress import SILENT, Progress
from ...data.samples import Sample
from ..execution.batch_limit import BatchLimit
from .config import PrecomputeConfig
from .fixed import Fixed, fixed_before
from .importance import importance_before, importance_samples, measure_importance
from .inputs import Inputs, load_inputs
from .pilot import PILOT_RUNS, PILOT_SAMPLES, cheapest_setting, full_setting, time_setting
from .rows import part_tables
from .sample import MeasureConfig, SampleRunner
from .work_counts import KINDS, Ledger

FORECAST_SAMPLES = 4
_IMPORTANCE_SAMPLES = 2
# The largest standard deviation of a binomial outcome, at accuracy 0.5. Graded metrics vary less.
_WORST_DEVIATION = 0.5


def forecast(config: PrecomputeConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Runs a few samples in full, writes nothing, and returns the expected cost of the whole run, JSON-able.

    `hours` per phase, `disk_bytes`, `peak_memory_bytes` of this process and of the GPU, and an upper bound of the
    standard error of accuracies over this many samples (that of an accuracy of one half).
    """
    started = time.perf_counter()
    inputs = load_inputs(config, progress)
    loading_s = time.perf_counter() - started
    samples = inputs.share(config)
    fixed, importance_s, is_assumed = _fixed(config, inputs)
    knobs = inputs.knobs.with_run(fixed.importance, fixed.budgets_ms)
    pilot_s = 0.0
    drawn = random.Random(f"forecast/{config.seed}").sample(samples, min(FORECAST_SAMPLES + 1, len(samples)))
    ledger = Ledger(knobs.model.device)
    measure = MeasureConfig.of(config)
    with progress.steps("dry run", len(drawn)) as advance:
        if fixed_before(config) is None:
            before = time.perf_counter()
            for setting in (cheapest_setting(knobs), full_setting(knobs)):
                time_setting(knobs, drawn[0], setting, seed=config.seed, runs=PILOT_RUNS)
            pilot_s = (time.perf_counter() - before) * min(PILOT_SAMPLES, len(inputs.samples))
        if len(drawn) > 1:
            SampleRunner(knobs, measure, Ledger()).run(drawn.pop(0))  # warm-up: includes one-time costs
            advance()
        results = []
        for sample in drawn:
            results.append(SampleRunner(knobs, measure, ledger).run(sample))
            advance()
    with ledger.timed("write"):
        part_bytes = sum(_parquet_bytes(table) for table in part_tables(results, knobs.positions, knobs.budgets_ms))
    scale = len(samples) / len(results)
    seconds = {kind: ledger.seconds[kind] * scale for kind in KINDS if ledger.seconds[kind]}
    phases = {"loading": loading_s, "importance": importance_s, "pilot": pilot_s, **seconds}
    return {
        "samples": len(samples),
        "settings": len(knobs.space.settings),
        "samples_timed": len(results),
        "hours": {phase: seconds_of / 3600 for phase, seconds_of in phases.items()},
        "total_hours": sum(phases.values()) / 3600,
        "disk_bytes": int(part_bytes * scale) + len(encoder_bytes(knobs.encoder)),
        "peak_memory_bytes": peak_memory(knobs.model.device),
        "rows_per_call_positions": BatchLimit.of(knobs.model.device).positions,
        "standard_error": standard_errors(samples),
        "block_runs": {name: int(ledger.counts[f"block_runs_{name}"] * scale) for name in ("asked", "executed")},
        "importance_is_assumed": is_assumed,
    }


def standard_errors(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Returns, for each dataset, an upper bound of the standard error of accuracy over all samples and over `test`."""
    errors = {}
    for dataset in sorted({sample.dataset for sample in samples}):
        mine = [sample for sample in samples if sample.dataset == dataset]
        counts = {"all": len(mine), "test": sum(sample.split == "test" for sample in mine)}
        errors[dataset] = {name: _WORST_DEVIATION / math.sqrt(count) for name, count in counts.items() if count}
    return errors


def _fixed(config: PrecomputeConfig, inputs: Inputs) -> tuple[Fixed, float, bool]:
    """Returns scores and a grid, the seconds to measure the scores, and whether the scores are placeholders.

    Scores that are not measured yet are replaced by a random order of the blocks: importance affects which plans share
    blocks, and thus the cost, only slightly.
    """
    before = fixed_before(config)
    if before is not None:
        return before, 0.0, False
    budgets_ms = normalise_budgets(np.geomspace(10, 100, len(config.budgets) or DEFAULT_BUDGETS))
    known = importance_before(config, inputs)
    if known is not None:
        return Fixed(known, budgets_ms), 0.0, False
    drawn = importance_samples(config, inputs)
    few = drawn[:_IMPORTANCE_SAMPLES]
    started = time.perf_counter()
    measure_importance(inputs.knobs, few, runs=1, threads=config.sweep_threads)
    seconds = (time.perf_counter() - started) / len(few) * len(drawn)
    num_blocks = inputs.knobs.num_blocks
    order = random.Random(f"forecast/{config.seed}").sample(range(num_blocks), num_blocks)
    return Fixed(ImportanceScores(tuple(float(place) for place in order)), budgets_ms), seconds, True


def _parquet_bytes(table: pa.Table) -> int:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.tell()


def peak_memory(device: torch.device) -> dict[str, int]:
    """Returns this process's peak bytes so far, in memory and on the GPU: a run never holds more than a few samples."""
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated(device)
    return peak
