"""The dry run: times a few samples in full and says what the whole run will take."""

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
from ...data.budgets import DEFAULT_BUDGETS
from ...data.plans import ImportanceScores
from ...data.samples import Sample
from ..execution.batch_limit import BatchLimit
from ..models.progress import progress_bar
from .config import PrecomputeConfig
from .importance import DEFAULT_RUNS, choose_importance_samples, measure_importance, scores_path
from .inputs import Fixed, Inputs, encoder_of, find_importance, fixed_before, importance_key, knob_model, load_inputs
from .pilot import PILOT_RUNS, PILOT_SAMPLES, cheapest_setting, full_setting, time_setting
from .rows import part_tables
from .sample import MeasureConfig, SampleRunner
from .work_counts import KINDS, Ledger

FORECAST_SAMPLES = 4
_IMPORTANCE_SAMPLES = 2
# What binomial outcomes can scatter at most: accuracy 0.5. Graded metrics scatter less.
_WORST_DEVIATION = 0.5


def forecast(config: PrecomputeConfig) -> dict[str, Any]:
    """Runs a few samples in full, writes nothing, and returns what the whole run will take, JSON-able.

    `hours` per phase, `disk_bytes`, `peak_memory_bytes` of this process and of the GPU, and the standard error that
    accuracies will have with this many samples (at most: that of an accuracy of one half).
    """
    started = time.perf_counter()
    inputs = load_inputs(config)
    loading_s = time.perf_counter() - started
    samples = inputs.samples[config.shard.index :: config.shard.count]
    fixed, importance_s, is_assumed = _fixed(config, inputs)
    knobs = knob_model(config, inputs, fixed)
    pilot_s = 0.0
    drawn = random.Random(f"forecast/{config.seed}").sample(samples, min(FORECAST_SAMPLES + 1, len(samples)))
    ledger = Ledger(knobs.model.device)
    measure = MeasureConfig(
        config.latency_mode, config.runs, config.checks_per_tiling, config.seed, config.sweep_threads
    )
    with progress_bar("dry run", len(drawn)) as advance:
        if fixed_before(config) is None:
            before = time.perf_counter()
            for setting in (cheapest_setting(knobs), full_setting(knobs)):
                time_setting(knobs, drawn[0], setting, seed=config.seed, runs=PILOT_RUNS)
            pilot_s = (time.perf_counter() - before) * min(PILOT_SAMPLES, len(inputs.samples))
        if len(drawn) > 1:
            SampleRunner(knobs, measure, Ledger()).run(drawn.pop(0))  # warm-up: it pays for what is made once
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
        "settings": len(config.space.settings),
        "samples_timed": len(results),
        "hours": {phase: seconds_of / 3600 for phase, seconds_of in phases.items()},
        "total_hours": sum(phases.values()) / 3600,
        "disk_bytes": int(part_bytes * scale) + len(encoder_bytes(encoder_of(config, inputs))),
        "peak_memory_bytes": _peak_memory(knobs.model.device),
        "rows_per_call_positions": BatchLimit.of(knobs.model.device).positions,
        "standard_error": standard_errors(samples),
        "block_runs": {name: int(ledger.counts[f"block_runs_{name}"] * scale) for name in ("asked", "executed")},
        "importance_is_assumed": is_assumed,
    }


def standard_errors(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Returns, per dataset, the most that the standard error of an accuracy can be: over all samples, over `test`."""
    errors = {}
    for dataset in sorted({sample.dataset for sample in samples}):
        mine = [sample for sample in samples if sample.dataset == dataset]
        counts = {"all": len(mine), "test": sum(sample.split == "test" for sample in mine)}
        errors[dataset] = {name: _WORST_DEVIATION / math.sqrt(count) for name, count in counts.items() if count}
    return errors


def _fixed(config: PrecomputeConfig, inputs: Inputs) -> tuple[Fixed, float, bool]:
    """Returns scores and a grid, the seconds that measuring the scores will take, and whether the scores are made up.

    Which blocks matter changes which plans share blocks, little beside the whole; a random order stands in.
    """
    before = fixed_before(config)
    if before is not None:
        return before, 0.0, False
    budgets_ms = tuple(float(ms) for ms in np.geomspace(10, 100, len(config.budgets) or DEFAULT_BUDGETS))
    loaded = inputs.loaded
    if config.importance is not None:
        return Fixed(find_importance(config, inputs), budgets_ms), 0.0, False
    drawn = choose_importance_samples(
        inputs.samples, limit=config.importance_samples, runs=DEFAULT_RUNS, seed=config.seed
    )
    kept = scores_path(loaded, importance_key(config, inputs, drawn))
    if kept is not None and kept.is_file():
        return Fixed(find_importance(config, inputs), budgets_ms), 0.0, False
    few = drawn[:_IMPORTANCE_SAMPLES]
    started = time.perf_counter()
    measure_importance(loaded, few, inputs.tasks, space=config.space, runs=1, threads=config.sweep_threads)
    seconds = (time.perf_counter() - started) / len(few) * len(drawn)
    order = random.Random(f"forecast/{config.seed}").sample(
        range(loaded.model.config.num_blocks), loaded.model.config.num_blocks
    )
    return Fixed(ImportanceScores(tuple(float(place) for place in order)), budgets_ms), seconds, True


def _parquet_bytes(table: pa.Table) -> int:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.tell()


def _peak_memory(device: torch.device) -> dict[str, int]:
    """Bytes that this process, and the GPU for it, have held at most so far: a run holds no more than a few samples."""
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated(device)
    return peak
