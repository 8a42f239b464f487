"""One share of a run: what it depends on, its parts, its manifest. `scale/` decides which process runs which part.

A share is the whole run or a `--shard`.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ... import __version__
from ...controllers.budget_encoder import encoder_bytes
from ...data.cache.manifest import Manifest
from ...data.cache.writer import CacheWriter, encode_part
from ...data.datasets.sample_set import SampleSet
from ...data.progress import SILENT, Progress
from ...data.schema import SPLITS
from ...devices import device_record
from ..latency.block_times import LatencyCheck
from ..latency.device_lock import DeviceTurn
from ..latency.slow_spells import Pace
from .config import PrecomputeConfig
from .fixed import Fixed, run_record
from .inputs import Inputs, dtype_name
from .journal import Journal, check_summary
from .recorded import find_known
from .rows import part_tables
from .sample import Known, MeasureConfig, SampleRunner
from .work_counts import Ledger


@dataclass(frozen=True)
class Share:
    """What is known of a share before its first part. The process that writes the cache needs no model."""

    sets: tuple[SampleSet, ...]  # all samples of the run
    fixed: Fixed
    record: dict[str, Any]  # the content of `run.json`
    sample_ids: tuple[str, ...]  # of this share, in the order in which they are run
    manifest: Manifest  # without what the parts add
    encoder: bytes

    def finish(self, writer: CacheWriter, journal: Journal) -> None:
        """Writes the manifest, once every part is committed."""
        ledger, checks = journal.read()
        manifest = replace(
            self.manifest,
            latency_check=check_summary(checks),
            created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            extra={"execution": ledger.to_dict(), **self.manifest.extra},
        )
        writer.finish(manifest, self.encoder)
        journal.remove()


@dataclass(frozen=True)
class Part:
    """The rows of up to `part_samples` samples, as the files that are committed, and the work that made them."""

    files: dict[str, bytes]
    ledger: Ledger
    checks: tuple[LatencyCheck, ...]

    def commit(self, writer: CacheWriter, journal: Journal) -> None:
        """Writes the part and its line of the journal."""
        with self.ledger.timed("write"):
            name = writer.commit_part(self.files)
        with writer.disk_errors():
            journal.append(name, self.ledger, self.checks)


class PartRunner:
    """Runs parts of a share, one after the other, in the process that has the model."""

    def __init__(
        self,
        config: PrecomputeConfig,
        inputs: Inputs,
        fixed: Fixed,
        turn: DeviceTurn | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self._config, self._inputs, self._fixed, self._turn = config, inputs, fixed, turn
        self._known = find_known(config, inputs, fixed, progress)
        self._knobs = inputs.knobs.with_run(fixed.importance, fixed.budgets_ms)
        self._samples = {sample.sample_id: sample for sample in inputs.share(config)}
        self._pace = Pace()

    @property
    def record(self) -> dict[str, Any]:
        """The content of `run.json`, as this process determines it."""
        results = self._known.notes.get("results", {})
        return run_record(self._config, self._inputs, self._fixed, results.get("sources_sha256"))

    def share(self) -> Share:
        """Returns what the writer of the cache needs to know."""
        return Share(
            self._inputs.sets,
            self._fixed,
            self.record,
            tuple(self._samples),
            _manifest(self._config, self._inputs, self._fixed, self._known),
            encoder_bytes(self._knobs.encoder),
        )

    def run(self, sample_ids: Sequence[str], progress: Progress = SILENT) -> Part:
        """Runs some samples of the share under every setting."""
        ledger, known = Ledger(self._knobs.model.device), self._known
        runner = SampleRunner(self._knobs, MeasureConfig.of(self._config), ledger, self._turn, self._pace)
        results = []
        with progress.steps("samples", len(sample_ids)) as advance:
            for sample_id in sample_ids:
                sample, outcomes = self._samples[sample_id], known.outcomes.get(sample_id)
                results.append(runner.run(sample, outcomes, complete=known.complete))
                advance()
            runner.retake_slowed()
        with ledger.timed("write"):
            files = encode_part(*part_tables(results, self._knobs.positions, self._knobs.budgets_ms))
        work = Ledger()  # without the device, which the process that writes the cache may not have
        work.absorb(ledger.to_dict())
        checks = tuple(check for result in results for check in result.checks)
        return Part({name: bytes(file) for name, file in files.items()}, work, checks)


def _manifest(config: PrecomputeConfig, inputs: Inputs, fixed: Fixed, known: Known) -> Manifest:
    """Returns the content of `cache.json` except what the parts add."""
    loaded, geometry = inputs.loaded, inputs.loaded.model.geometry
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
        prompt_template=loaded.model.prompt_template,
        max_new_tokens={one.name: one.max_new_tokens for one in inputs.sets},
        datasets=_dataset_records(config, inputs),
        created_by=f"knobctl {__version__}",
        extra=dict(known.notes),
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
