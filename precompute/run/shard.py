"""One share of a run, from its first part to the manifest: resumes after a kill, stops when interrupted."""

from __future__ import annotations

import datetime
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ... import __version__
from ...controllers.budget_encoder import encoder_bytes
from ...data.cache.manifest import RUN_NAME, Manifest
from ...data.cache.run_record import check_same_run
from ...data.cache.writer import CacheWriter
from ...data.errors import KnobctlError
from ...data.progress import SILENT, Progress
from ...data.samples import Sample
from ...data.schema import SPLITS
from ...devices import device_record
from ..execution.knob_model import KnobModel
from ..latency.device_lock import DeviceTurn
from ..latency.slow_spells import Pace
from .config import PrecomputeConfig
from .fixed import Fixed, run_record
from .inputs import Inputs, dtype_name, load_inputs
from .interrupt import Interrupted, stop_on_interrupt
from .journal import Journal, check_summary
from .recorded import find_known
from .rows import part_tables
from .sample import Known, MeasureConfig, SampleRunner
from .work_counts import Ledger


def run_shard(
    config: PrecomputeConfig,
    inputs: Inputs,
    fixed: Fixed,
    *,
    turn: DeviceTurn | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Runs the config's share of the samples into `config.out` and completes that cache. Returns its summary.

    A share is the whole run, a `--shard`, a rank's or a worker's. If the cache is complete already, nothing runs.

    Raises:
        Interrupted: after SIGINT, once the current part is committed.
        CacheMismatch: the directory was started with another request.
    """
    started = time.perf_counter()
    known = find_known(config, inputs, fixed, progress)
    samples = inputs.share(config)
    with CacheWriter(config.out, _run_record(config, inputs, fixed, known), shard=config.shard) as writer:
        if not writer.complete:
            knobs = inputs.knobs.with_run(fixed.importance, fixed.budgets_ms)
            _write_parts(config, knobs, samples, writer, known, turn, progress)
            writer.finish(_manifest(config, inputs, fixed, known), encoder_bytes(knobs.encoder))
            Journal(config.out).remove()
    return summary(config, len(samples), time.perf_counter() - started)


def complete_run(config: PrecomputeConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Returns the summary of a complete cache, after checking that this request made it. Runs and writes nothing.

    Raises:
        CacheMismatch: the cache was made by another request.
        KnobctlError: the cache was not made by `knobctl precompute` with a model.
    """
    started = time.perf_counter()
    if not (config.out / RUN_NAME).is_file():
        raise KnobctlError(f"{config.out} was not made by precompute: choose another directory.")
    inputs = load_inputs(config, progress)
    fixed = Fixed.read(config.out)
    known = find_known(config, inputs, fixed, progress)
    check_same_run(config.out, _run_record(config, inputs, fixed, known), config.shard)
    return summary(config, len(inputs.share(config)), time.perf_counter() - started)


def _run_record(config: PrecomputeConfig, inputs: Inputs, fixed: Fixed, known: Known) -> dict[str, Any]:
    return run_record(config, inputs, fixed, known.notes.get("results", {}).get("sources_sha256"))


def _write_parts(
    config: PrecomputeConfig,
    knobs: KnobModel,
    samples: Sequence[Sample],
    writer: CacheWriter,
    known: Known,
    turn: DeviceTurn | None,
    progress: Progress,
) -> None:
    done = writer.done_samples()
    waiting = [sample for sample in samples if sample.sample_id not in done]
    journal = Journal(config.out)
    measure = MeasureConfig.of(config)
    pace = Pace()
    with progress.steps("samples", len(samples), len(done)) as advance, stop_on_interrupt() as stop_asked:
        for start in range(0, len(waiting), config.part_samples):
            ledger = Ledger(knobs.model.device)
            runner = SampleRunner(knobs, measure, ledger, turn, pace)
            results = []
            for sample in waiting[start : start + config.part_samples]:
                results.append(runner.run(sample, known.outcomes.get(sample.sample_id), complete=known.complete))
                advance()
            runner.retake_slowed()
            with ledger.timed("write"):
                part = writer.write_part(*part_tables(results, knobs.positions, knobs.budgets_ms))
            with writer.disk_errors():
                journal.append(part, ledger, [check for result in results for check in result.checks])
            left = len(waiting) - start - len(results)
            if stop_asked() and left:
                raise Interrupted(
                    f"stopped as asked: {len(samples) - left} of {len(samples)} samples are in {config.out}. "
                    "Run the same command again to continue."
                )


def _manifest(config: PrecomputeConfig, inputs: Inputs, fixed: Fixed, known: Known) -> Manifest:
    """Returns the content of `cache.json` except its list of files."""
    loaded, geometry = inputs.loaded, inputs.loaded.model.geometry
    ledger, checks = Journal(config.out).read()
    return Manifest(
        model_name=loaded.name,
        d_model=geometry.d_model,
        n_blocks=geometry.n_blocks,
        native_top_k=geometry.largest_top_k,
        n_experts=geometry.n_experts,
        fingerprint=loaded.fingerprint,
        dtype=dtype_name(loaded),
        space=inputs.knobs.space,
        budgets_ms=fixed.budgets_ms,
        latency_mode=config.manifest_latency_mode,
        device=device_record(loaded.model.device),
        importance=fixed.importance,
        runs=config.runs,
        latency_statistic="median",
        latency_check=check_summary(checks),
        prompt_template=loaded.model.prompt_template,
        max_new_tokens={one.name: one.max_new_tokens for one in inputs.sets},
        datasets=_dataset_records(config, inputs),
        created_by=f"knobctl {__version__}",
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        extra={"execution": ledger.to_dict(), **known.notes},
    )


def _dataset_records(config: PrecomputeConfig, inputs: Inputs) -> dict[str, Any]:
    """Returns, for each dataset, this shard's rows in each split and the dataset's own record."""
    rows = Counter((sample.dataset, sample.split) for sample in inputs.share(config))
    return {
        one.name: {
            **{split: rows[one.name, split] for split in SPLITS},
            **{name: value for name, value in one.to_dict().items() if name != "samples"},
        }
        for one in inputs.sets
    }


def summary(config: PrecomputeConfig, num_samples: int, seconds: float) -> dict[str, Any]:
    """Returns the JSON-able summary of the complete cache in `config.out`."""
    manifest = Manifest.read(config.out)
    files = manifest.files or ()
    return {
        "out": str(config.out),
        "model": manifest.model_name,
        "samples": num_samples,
        "settings": len(manifest.space.settings),
        "budgets_ms": list(manifest.budgets_ms),
        "latency_mode": manifest.latency_mode,
        "latency_check": manifest.latency_check,
        "importance": None if manifest.importance is None else manifest.importance.to_dict(),
        "bytes": sum((config.out / file.path).stat().st_size for file in files),
        "seconds": round(seconds, 1),
        **manifest.extra,
    }
