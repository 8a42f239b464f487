"""One share of a run from its first part to the manifest: resumed where it ended, stopped when asked."""

from __future__ import annotations

import datetime
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ... import __version__
from ...controllers.budget_encoder import encoder_bytes
from ...data.cache.manifest import Manifest
from ...data.cache.writer import CacheWriter
from ...data.errors import KnobctlError
from ...data.samples import Sample
from ...devices import device_record
from ..execution.knob_model import KnobModel
from ..latency.device_lock import DeviceTurn
from ..latency.slow_spells import Pace
from ..models.molmoe.prompt import PROMPT_TEMPLATE
from ..models.progress import progress_bar
from .config import PrecomputeConfig
from .inputs import Fixed, Inputs, dtype_name, encoder_of, knob_model, request_record
from .journal import Journal, check_summary
from .rows import part_tables
from .sample import Known, MeasureConfig, SampleRunner
from .work_counts import Ledger


class Interrupted(KnobctlError):
    """The user stopped the run; what is committed stays."""


def run_shard(
    config: PrecomputeConfig, inputs: Inputs, fixed: Fixed, known: Known, *, turn: DeviceTurn | None = None
) -> dict[str, Any]:
    """Runs one share of the samples into its own directory and finishes it.

    Raises:
        Interrupted: after SIGINT, when the part in hand is committed.
    """
    started = time.perf_counter()
    knobs = knob_model(config, inputs, fixed)
    sources = known.notes.get("results", {}).get("sources_sha256")
    run = {"request": request_record(config, inputs, sources), **fixed.to_dict()}
    with CacheWriter(config.out, run, shard=config.shard) as writer:
        samples = inputs.samples[config.shard.index :: config.shard.count]
        if not writer.complete:
            _write_parts(config, knobs, samples, writer, known, turn)
            manifest = writer.finish(_manifest(config, inputs, fixed, known), encoder_bytes(encoder_of(config, inputs)))
            Journal(config.out).remove()
        else:
            manifest = Manifest.read(config.out)
    return summary(config, manifest, len(samples), time.perf_counter() - started)


def _write_parts(
    config: PrecomputeConfig,
    knobs: KnobModel,
    samples: Sequence[Sample],
    writer: CacheWriter,
    known: Known,
    turn: DeviceTurn | None,
) -> None:
    done = writer.done_samples()
    waiting = [sample for sample in samples if sample.sample_id not in done]
    journal = Journal(config.out)
    measure = MeasureConfig(
        manifest_latency_mode(config), config.runs, config.checks_per_tiling, config.seed, config.sweep_threads
    )
    pace = Pace()
    with progress_bar("samples", len(samples), len(done)) as advance, stop_on_interrupt() as stop_asked:
        for start in range(0, len(waiting), config.part_samples):
            ledger = Ledger(knobs.model.device)
            runner = SampleRunner(knobs, measure, ledger, turn, pace)
            results = []
            for sample in waiting[start : start + config.part_samples]:
                results.append(runner.run(sample, known.answers.get(sample.sample_id), complete=known.complete))
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
                    "Run the same command again to go on."
                )


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """While the body runs, a first SIGINT only asks to stop, which the body can look up; a second one interrupts."""
    asked = False

    def ask(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread, which alone may set handlers
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def manifest_latency_mode(config: PrecomputeConfig) -> str:
    """As the cache names it: `imported` where recorded latencies are kept and none is measured."""
    return "imported" if config.imported_latency else config.latency_mode


def _manifest(config: PrecomputeConfig, inputs: Inputs, fixed: Fixed, known: Known) -> Manifest:
    """Everything `cache.json` says but its files."""
    loaded, geometry = inputs.loaded, inputs.loaded.model.config
    ledger, checks = Journal(config.out).read()
    return Manifest(
        model_name=loaded.name,
        d_model=geometry.d_model,
        n_blocks=geometry.num_blocks,
        native_top_k=geometry.native_top_k,
        n_experts=geometry.num_experts,
        fingerprint=loaded.fingerprint,
        dtype=dtype_name(loaded),
        space=config.space,
        budgets_ms=fixed.budgets_ms,
        latency_mode=manifest_latency_mode(config),
        device=device_record(loaded.model.device),
        importance=fixed.importance,
        runs=config.runs,
        latency_statistic="median",
        latency_check=check_summary(checks),
        prompt_template=PROMPT_TEMPLATE,
        max_new_tokens={one.name: one.max_new_tokens for one in inputs.sets},
        datasets=_dataset_records(config, inputs),
        created_by=f"knobctl {__version__}",
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        extra={"execution": ledger.to_dict(), **known.notes},
    )


def _dataset_records(config: PrecomputeConfig, inputs: Inputs) -> dict[str, Any]:
    """Rows of each split of this shard, beside what the dataset says of itself."""
    mine = inputs.samples[config.shard.index :: config.shard.count]
    records = {}
    for one in inputs.sets:
        record: dict[str, Any] = dict.fromkeys(("train", "val", "test"), 0)
        for sample in mine:
            if sample.dataset == one.name:
                record[sample.split] += 1
        records[one.name] = {**record, **{k: v for k, v in one.to_dict().items() if k != "samples"}}
    return records


def summary(config: PrecomputeConfig, manifest: Manifest, num_samples: int, seconds: float) -> dict[str, Any]:
    """What the command prints."""
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
