"""Writes recorded outcomes as a cache of latency mode "imported", which contains no features or tokens of a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from ..budgets import budget_grid
from ..cache.manifest import Manifest
from ..cache.writer import CacheWriter
from ..datasets.cache_split import cache_split
from ..files.atomic import write_atomically
from ..files.bounded_json import dump_json
from ..knobs import DEFAULT_TIER_CROPS, KnobSpace
from ..progress import SILENT, Progress
from .coverage import tier_key
from .deduplication import UNKNOWN_BLOCKS, choose_blocks
from .outcomes import RecordedOutcomes, recorded_outcomes
from .report import Finding, ImportReport

REPORT_NAME = "import_report.json"
SAMPLES_PER_PART = 4_096
UNKNOWN_MODEL = "unknown (results do not name it)"
MODEL_BLOCKS = 16  # of MolmoE, the only model that the profiler supports
MODEL_TOP_K = 8
_PER_OUTCOME = ["accuracy", "latency_ms", "answer", "vision_tokens", "output_tokens"]
_STAGES = ["vision_ms", "prefill_ms", "decode_ms"]


def import_results(
    results_dir: Path,
    out: Path,
    *,
    datasets: Sequence[str] = (),
    strict: bool = False,
    metric: str | Mapping[str, str] | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress = SILENT,
    model_name: str = UNKNOWN_MODEL,
    native_top_k: int | None = None,
    budgets_ms: Sequence[float] | None = None,
) -> ImportReport:
    """Writes a `core_exp` results directory as a cache to `out`, and returns the report of the import.

    Args:
        datasets: which to import; none means all VQA datasets in the directory.
        strict: any finding of level error is fatal, and nothing is written.
        metric: a name of `data/metrics`, or one per dataset, to recompute accuracy with; None keeps the recorded one.
        seed: of the splits.
        workers: processes that read the files; None: one per CPU.
        progress: receives a step for each file.
        model_name: recorded in the cache; the files do not name the model.
        native_top_k: of the model; None: that of MolmoE, 8, or the largest recorded top-k.
        budgets_ms: the budget grid; None: 16 budgets derived from the recorded latencies.

    Raises:
        ResultsError: no row can be used, or `strict` is set and there are errors.
        CacheError: `out` cannot be written.
    """
    recorded = recorded_outcomes(
        Path(results_dir), datasets=datasets, strict=strict, metric=metric, workers=workers, progress=progress
    )
    report = recorded.report
    table, findings = _one_block_set(recorded.table)
    report.extend(findings)
    samples = recorded.questions.join(table.select("sample_id").unique(), on="sample_id", how="semi")
    samples, findings = _with_splits(samples.sort("sample_id"), seed)
    report.extend(findings)
    top_k = native_top_k or max(MODEL_TOP_K, *table["top_k"].to_list())
    n_blocks = max(recorded.n_blocks or MODEL_BLOCKS, *table["num_blocks"].to_list())
    assumed = [] if native_top_k else [f"native top-k {top_k}"]
    assumed += [] if recorded.n_blocks else [f"{n_blocks} blocks"]
    assumed += [] if model_name != UNKNOWN_MODEL else [f"name {UNKNOWN_MODEL!r}"]
    if assumed:
        report.extend([Finding("assumed_model", "", 0, ", ".join(assumed))])
    report.outcomes = table.height
    report.sort()
    budgets = budgets_of(table) if budgets_ms is None else tuple(float(budget) for budget in budgets_ms)
    manifest = Manifest(
        model_name=model_name,
        d_model=0,
        n_blocks=n_blocks,
        native_top_k=top_k,
        space=_space(table, recorded),
        budgets_ms=budgets,
        latency_mode="imported",
        runs=recorded.runs,
        latency_statistic="mean",
        datasets=_dataset_counts(samples, recorded.metrics),
        extra={
            "imported": {
                "block_sets": _block_sets(table),
                "accuracy": recorded.metrics or "as recorded",
                "split_seed": seed,
            }
        },
    )
    _write(Path(out), samples, table, manifest, _run_record(report, recorded.metrics, seed, manifest), report)
    return report


def budgets_of(table: pl.DataFrame) -> tuple[float, ...]:
    """Returns budgets from the lowest median of a setting to the highest 95th percentile; none without times."""
    per_setting = (
        table.drop_nulls("latency_ms")
        .group_by("tier", "top_k", "num_blocks")
        .agg(
            pl.col("latency_ms").cast(pl.Float64).median().alias("median"),
            pl.col("latency_ms").cast(pl.Float64).quantile(0.95, "linear").alias("p95"),
        )
    )
    if per_setting.is_empty():
        return ()
    low, high = float(per_setting["median"].to_numpy().min()), float(per_setting["p95"].to_numpy().max())
    return budget_grid(low, high) if math.isfinite(low) and math.isfinite(high) else ()


def _one_block_set(table: pl.DataFrame) -> tuple[pl.DataFrame, list[Finding]]:
    blocks = pl.col("active_block_indices").cast(pl.List(pl.String)).list.join(",")
    table, findings = choose_blocks(table.with_columns(blocks.fill_null(UNKNOWN_BLOCKS).alias("block_set")))
    return table, findings


def _with_splits(samples: pl.DataFrame, seed: int) -> tuple[pl.DataFrame, list[Finding]]:
    """Adds the column `split`: by image, or by question for questions without image_id, with a finding per dataset."""
    keys = samples.select(pl.coalesce("image_id", "sample_id")).to_series().to_list()
    split = pl.Series("split", [cache_split(key, seed) for key in keys], pl.String)
    lacking = samples.filter(pl.col("image_id").is_null()).group_by("dataset").len().sort("dataset")
    findings = [Finding("no_image_id", "", rows, dataset) for dataset, rows in lacking.iter_rows()]
    return samples.with_columns(split), findings


def _space(table: pl.DataFrame, recorded: RecordedOutcomes) -> KnobSpace:
    """Returns the knob values that occur in the rows."""
    tiers = tuple(sorted(table["tier"].unique().to_list(), key=tier_key))
    crops = [recorded.tier_crops.get(tier) or DEFAULT_TIER_CROPS.get(tier) for tier in tiers]
    known = [c for c in crops if c is not None]
    return KnobSpace(
        tiers=tiers,
        insertion_positions=(None,),
        top_k=tuple(sorted(table["top_k"].unique().to_list())),
        num_blocks=tuple(sorted(table["num_blocks"].unique().to_list())),
        tier_crops=tuple(known) if len(known) == len(tiers) else None,
    )


def _block_sets(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Returns the blocks that ran for each dataset and setting, for comparison with block plans."""
    keys = ["dataset", "tier", "top_k", "num_blocks"]
    sets = table.group_by(keys).agg(pl.col("active_block_indices").first()).to_dicts()
    return sorted(sets, key=lambda r: (r["dataset"], tier_key(r["tier"]), r["top_k"], r["num_blocks"]))


def _dataset_counts(samples: pl.DataFrame, metrics: Mapping[str, str]) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    for dataset, split, rows in samples.group_by("dataset", "split").len().sort("dataset", "split").iter_rows():
        counts.setdefault(dataset, {})[split] = rows
    for dataset, record in counts.items():
        record["metric"] = metrics.get(dataset, "as recorded")
    return counts


def _run_record(report: ImportReport, metrics: Mapping[str, str], seed: int, manifest: Manifest) -> dict[str, Any]:
    """Returns what the rows of the cache depend on: the content of the files, but not the path of the directory."""
    return {
        "imported_from": [{"file": s["file"], "sha256": s["sha256"]} for s in report.sources],
        "datasets": sorted(report.questions),
        "metrics": dict(metrics),
        "split_seed": seed,
        "model": {"name": manifest.model_name, "n_blocks": manifest.n_blocks, "native_top_k": manifest.native_top_k},
        "knobs": manifest.space.to_dict(),
        "budgets_ms": list(manifest.budgets_ms),
    }


def _write(
    out: Path, samples: pl.DataFrame, table: pl.DataFrame, manifest: Manifest, run: dict[str, Any], report: ImportReport
) -> None:
    with CacheWriter(out, run) as writer:
        if writer.complete:
            return  # the same files were imported here with the same options
        done = writer.done_samples()
        for sample_ids in _parts(samples["sample_id"].to_list(), done):
            part = samples.filter(pl.col("sample_id").is_in(sample_ids))
            outcomes = table.filter(pl.col("sample_id").is_in(sample_ids))
            writer.write_part(_samples_table(part), _outcomes_table(outcomes), None)
        write_atomically(out / REPORT_NAME, dump_json(report.to_dict()))
        writer.finish(manifest)


def _parts(sample_ids: Sequence[str], done: set[str]) -> Iterable[list[str]]:
    remaining = [sample_id for sample_id in sample_ids if sample_id not in done]
    for start in range(0, len(remaining), SAMPLES_PER_PART):
        yield remaining[start : start + SAMPLES_PER_PART]


def _samples_table(samples: pl.DataFrame) -> pa.Table:
    columns = ["sample_id", "dataset", "split"]
    columns += [name for name in ("question", "answers", "image_id") if samples[name].null_count() < samples.height]
    return samples.select(columns).to_arrow()


def _outcomes_table(outcomes: pl.DataFrame) -> pa.Table:
    """Columns of `data/schema.py`. Without times of single runs, there is no `latency_runs_ms` and `latency_std_ms`."""
    rows = outcomes.select(
        "sample_id",
        "tier",
        pl.lit(None, pl.Int8).alias("insertion_position"),
        "top_k",
        "num_blocks",
        *_PER_OUTCOME,
        *_STAGES,
        pl.lit("imported").alias("outcome_source"),
    )
    return rows.sort("sample_id", "tier", "top_k", "num_blocks").to_arrow()
