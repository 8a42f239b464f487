"""The recorded outcomes of a results directory as one tidy table; independent of caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import multimode

import polars as pl

from ..errors import ResultsError
from ..printable import printable
from ..progress import SILENT, Progress
from .accuracy import metrics_by_dataset, recompute, settle_scale
from .coverage import configurations, file_findings, question_findings
from .deduplication import QUESTION, UNKNOWN_BLOCKS, count_once, join_readings, settle_old_schema, settle_questions
from .reading import FileReading, read_files
from .report import Finding, ImportReport
from .result_files import LAYOUT, deeper_hint, list_results


@dataclass(frozen=True)
class RecordedOutcomes:
    """The outcomes in a results directory, each question once per configuration.

    table: one row per (dataset, example_id, tier, top_k, block set), sorted by these; columns dataset, example_id,
        sample_id (`<dataset>/<example_id>`) str, tier str, top_k and num_blocks int8, active_block_indices list<int8>
        (distinct, ascending; null if the file does not list them), accuracy float32, answer str, latency_ms, vision_ms,
        prefill_ms, decode_ms float32, vision_tokens, output_tokens int32, file str. Null means not measured.
        `num_blocks` is the number of distinct blocks that ran. One (tier, top_k, num_blocks) can occur with several
        block sets.
    questions: one row per question, sorted by sample_id; sample_id, dataset, example_id, question str, image_id str,
        answers list<str>.
    tier_crops: the crop range of each tier on which the files agree.
    metrics: the metric of each dataset whose accuracy was recomputed; the others keep the recorded accuracy.
    n_blocks: blocks of the model; None if no file states them. runs: timed runs; None if unknown or not uniform.
    """

    table: pl.DataFrame
    questions: pl.DataFrame
    report: ImportReport
    n_blocks: int | None
    runs: int | None
    tier_crops: dict[str, tuple[int, int]]
    metrics: dict[str, str] = field(default_factory=dict)


def recorded_outcomes(
    results_dir: Path,
    *,
    datasets: Sequence[str] = (),
    strict: bool = False,
    metric: str | Mapping[str, str] | None = None,
    workers: int | None = None,
    progress: Progress = SILENT,
) -> RecordedOutcomes:
    """Reads a `core_exp` results directory.

    Args:
        datasets: names with `_` or `-`; none means all VQA datasets in the directory.
        strict: any finding of level error is fatal.
        metric: a name of `data/metrics`, or one per dataset, to recompute accuracy from the stored answers; None keeps
            the recorded accuracy.
        workers: processes that read the files; None: one per CPU.
        progress: receives a step for each file.

    Raises:
        ResultsError: no row can be used, or `strict` is set and there are errors.
    """
    files, findings = list_results(Path(results_dir), datasets)
    metrics = metrics_by_dataset(
        metric, {file.dataset for file in files}
    )  # first, so that a misspelt metric is refused before reading
    readings = read_files(files, workers=workers, progress=progress)
    report = ImportReport(directory=printable(Path(results_dir).resolve().name, 240))
    report.extend(findings)
    for reading in readings:
        report.extend(reading.findings)
    report.files_read = sum(reading.table_ipc is not None for reading in readings)
    report.files_left_out = len(readings) - report.files_read
    report.rows_read = sum(reading.rows_read for reading in readings)
    report.sources = [
        {"file": r.file.name, "bytes": r.file.size_bytes, "sha256": r.sha256, "rows": r.rows_read} for r in readings
    ]
    report.extend(file_findings(readings))
    rows = join_readings(readings)
    if rows.is_empty():
        raise ResultsError(_nothing(results_dir, report))
    rows, scales = settle_scale(rows, recomputed=metrics)
    rows, old = settle_old_schema(rows)
    rows, questions, conflicts = settle_questions(rows)
    rows, repeats = count_once(rows)
    report.extend([*scales, *old, *conflicts, *repeats, *question_findings(rows, readings)])
    rows, rescored = recompute(rows, questions, metrics)
    report.extend(rescored)
    n_blocks, block_findings = _total_blocks(readings)
    runs, run_findings = _runs(readings)
    report.extend([*block_findings, *run_findings])
    report.outcomes = rows.height
    report.questions = dict(questions.group_by("dataset").len().iter_rows())
    report.configurations = configurations(rows)
    report.sort()
    if strict:
        report.raise_if_errors()
    sample_id = pl.concat_str("dataset", pl.lit("/"), "example_id").alias("sample_id")
    return RecordedOutcomes(
        table=_tidy(rows, sample_id),
        questions=questions.select(sample_id, *QUESTION, "question", "image_id", "answers").sort("sample_id"),
        report=report,
        n_blocks=n_blocks,
        runs=runs,
        tier_crops=_tier_crops(readings),
        metrics=metrics,
    )


def _tidy(rows: pl.DataFrame, sample_id: pl.Expr) -> pl.DataFrame:
    blocks = (
        pl.when(pl.col("block_set") != UNKNOWN_BLOCKS)
        .then(pl.col("block_set").str.split(",").cast(pl.List(pl.Int8), strict=False))
        .alias("active_block_indices")
    )
    columns = ["accuracy", "answer", "latency_ms", "vision_ms", "prefill_ms", "decode_ms"]
    columns += ["vision_tokens", "output_tokens", "file"]
    table = rows.select(*QUESTION, sample_id, "tier", "top_k", "num_blocks", blocks, "block_set", *columns)
    return table.sort([*QUESTION, "tier", "top_k", "num_blocks", "block_set"]).drop("block_set")


def _total_blocks(readings: Sequence[FileReading]) -> tuple[int | None, list[Finding]]:
    totals = [reading.total_blocks for reading in readings if reading.total_blocks is not None]
    if len(set(totals)) > 1:
        shown = ", ".join(map(str, sorted(set(totals))))
        return max(multimode(totals)), [Finding("total_blocks_differ", "", 0, shown)]
    return (totals[0] if totals else None), []


def _runs(readings: Sequence[FileReading]) -> tuple[int | None, list[Finding]]:
    counts = sorted(set().union(*(reading.runs for reading in readings)))
    if len(counts) > 1:
        return None, [Finding("runs_differ", "", 0, ", ".join(map(str, counts[:10])))]
    return (counts[0] if counts else None), []


def _tier_crops(readings: Sequence[FileReading]) -> dict[str, tuple[int, int]]:
    ranges: dict[str, set[tuple[int, int]]] = {}
    for reading in readings:
        if reading.tier_crops is not None:
            ranges.setdefault(reading.file.tier, set()).add(reading.tier_crops)
    return {tier: next(iter(found)) for tier, found in sorted(ranges.items()) if len(found) == 1}


def _nothing(results_dir: Path, report: ImportReport) -> str:
    report.sort()
    shown = [f"{f.file or report.directory}: {f.what}" for f in report.findings if f.code != "other_files"][:5]
    hint = deeper_hint(results_dir) or ("" if shown else f" {LAYOUT}.")
    return f"{results_dir} holds no row that can be imported.{hint}" + "".join(f"\n  {line}" for line in shown)
