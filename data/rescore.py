"""Recomputes accuracy from the answers stored in a cache, under another metric, into a new cache; runs no model.

Everything else (latencies, tokens, features, encoder) is copied unchanged, and the old cache is only read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .cache.location import cache_directory
from .cache.parts import ENCODER_NAME, OUTCOMES, SAMPLES, TABLES, TOKENS, open_part, parquet_errors, part_paths
from .cache.reader import Cache, open_cache
from .cache.run_record import read_run
from .cache.writer import CacheWriter
from .errors import CacheError, DatasetError
from .metrics import Scorer, full_score_warning, get_metric
from .schema import latency_tokens_schema, outcomes_schema, samples_schema

_SAMPLES_AT_ONCE = 512


@dataclass(frozen=True)
class DatasetChange:
    """Mean accuracy, 0 to 1, over a dataset's scored rows before and after; it differs in `rows_changed` of them."""

    metric: str
    rows: int
    rows_changed: int
    accuracy_before: float
    accuracy_after: float


@dataclass(frozen=True)
class RescoreReport:
    """What rescoring changed in each dataset."""

    out: Path
    datasets: dict[str, DatasetChange]
    warnings: tuple[str, ...] = ()  # about metrics that do not suit their dataset's answers

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON."""
        datasets = {name: vars(change) for name, change in self.datasets.items()}
        return {"out": str(self.out), "datasets": datasets, "warnings": list(self.warnings)}


def metrics_from_options(values: Sequence[str]) -> str | dict[str, str]:
    """Parses the values of `--metric`: one NAME for all datasets, or DATASET=NAME for some. Raises DatasetError."""
    pairs = dict(value.split("=", 1) for value in values if "=" in value)
    if len(values) == 1 and not pairs:
        return values[0]
    if not values or len(pairs) != len(values):
        raise DatasetError(
            "--metric takes one NAME for all datasets, or DATASET=NAME once for each dataset to rescore."
        )
    return pairs


def rescore(cache: Path, metric: str | Mapping[str, str], out: Path) -> RescoreReport:
    """Writes a copy of `cache` to `out` with accuracy under `metric`, and returns what changed.

    Args:
        cache: A complete cache; it is not changed.
        metric: A metric for all datasets, or one for each of some datasets; the others keep their accuracy.
        out: A new or empty directory, or the output of the same rescoring that was interrupted.

    Raises:
        CacheError: Answers or reference answers are not stored (nothing is written then), or `out` cannot be used.
        DatasetError: A metric or dataset is unknown.
    """
    cache = cache_directory(cache)
    if out.resolve().is_relative_to(cache.resolve()) or cache.resolve().is_relative_to(out.resolve()):
        raise CacheError(
            f"{out} is inside {cache} or contains it, and rescoring never changes its source: choose another directory."
        )
    source = open_cache(cache, tokens=False)
    metrics = _by_dataset(source, metric)
    scorers = _Scorers(source, metrics)
    scorers.check_answers(part_paths(cache, OUTCOMES))
    run = read_run(cache)[0] if (cache / "run.json").exists() else {}
    tallies = {name: _Tally() for name in metrics}
    record = {"source_fingerprint": source.fingerprint, "metrics": metrics}
    with CacheWriter(out, {**run, "rescored": record}) as writer:
        if writer.complete:
            raise CacheError(f"{out} already contains this cache, complete: use it, or choose another directory.")
        done = writer.done_samples()
        for samples, outcomes, tokens in _pieces(source):
            rescored = scorers.rescored(outcomes, tallies)
            if samples.column("sample_id")[0].as_py() not in done:
                writer.write_part(samples, rescored, tokens)
        manifest = replace(source.manifest, datasets=_datasets(source, metrics), files=None)
        manifest = replace(manifest, extra={**manifest.extra, "rescored": record})
        encoder = source.path / ENCODER_NAME
        writer.finish(manifest, encoder.read_bytes() if encoder.is_file() else None)
    changes = {name: tally.change(metrics[name]) for name, tally in tallies.items()}
    return RescoreReport(out, changes, tuple(_warnings(source, metrics)))


def _by_dataset(source: Cache, metric: str | Mapping[str, str]) -> dict[str, str]:
    names = source.samples["dataset"].unique().sort().to_list()
    metrics = dict.fromkeys(names, metric) if isinstance(metric, str) else dict(metric)
    unknown = sorted(set(metrics) - set(names))
    if unknown:
        raise DatasetError(f"{source.path} has no dataset {', '.join(unknown)}; it has {', '.join(names)}.")
    return {dataset: get_metric(name).name for dataset, name in sorted(metrics.items())}


def _warnings(source: Cache, metrics: Mapping[str, str]) -> Iterator[str]:
    for dataset, metric in metrics.items():
        answers = source.samples.filter(source.samples["dataset"] == dataset)["answers"].to_list()
        warning = full_score_warning(dataset, metric, answers)
        if warning is not None:
            yield warning


def _datasets(source: Cache, metrics: Mapping[str, str]) -> dict[str, Any]:
    """Returns the manifest's `datasets` with the new metrics."""
    counts: dict[str, dict[str, Any]] = {}
    for dataset, split, rows in source.samples.group_by("dataset", "split").len().sort("dataset", "split").rows():
        counts.setdefault(dataset, {})[split] = rows
    known = source.manifest.datasets or {}
    return {
        name: {**counts[name], **known.get(name, {}), **({"metric": metrics[name]} if name in metrics else {})}
        for name in counts
    }


@dataclass
class _Tally:
    rows: int = 0
    rows_changed: int = 0
    sum_before: float = 0.0
    sum_after: float = 0.0

    def change(self, metric: str) -> DatasetChange:
        rows = max(self.rows, 1)
        return DatasetChange(metric, self.rows, self.rows_changed, self.sum_before / rows, self.sum_after / rows)


class _Scorers:
    """A scorer for each sample of the chosen datasets."""

    def __init__(self, source: Cache, metrics: Mapping[str, str]) -> None:
        self._dataset: dict[str, str] = {}
        self._scorer: dict[str, Scorer] = {}
        for sample_id, dataset, answers in source.samples.select("sample_id", "dataset", "answers").iter_rows():
            if dataset not in metrics:
                continue
            if not answers:
                raise CacheError(
                    f"{source.path / SAMPLES}, sample {sample_id}: stores no reference answers (column `answers`) to "
                    "score with: rescore other datasets only."
                )
            self._dataset[sample_id] = dataset
            self._scorer[sample_id] = Scorer(metrics[dataset], answers)
        self._root = source.path

    def check_answers(self, paths: Sequence[Path]) -> None:
        """Raises CacheError when a row with an accuracy has no answer. Rows without accuracy stay so."""
        for path in paths:
            file = open_part(self._root, path)
            with file, parquet_errors(path):
                has_answers = "answer" in file.schema_arrow.names
                table = file.read(columns=["sample_id", "accuracy", *(["answer"] if has_answers else [])])
            measured = pc.and_(
                pc.is_valid(table.column("accuracy")),
                pc.is_in(
                    table.column("sample_id").cast(pa.string()), value_set=pa.array(list(self._scorer), pa.string())
                ),
            )
            lacking = pc.and_(measured, pc.is_null(table.column("answer"))) if has_answers else measured
            count = pc.sum(lacking).as_py() or 0
            if count:
                row = pc.index(lacking, True).as_py()
                raise CacheError(
                    f"{path}, row {row}: stores no answer (column `answer`), like {count:,} rows of this part, so "
                    "accuracy cannot be recomputed: use a cache with answers, or rescore other datasets only."
                )

    def rescored(self, outcomes: pa.Table, tallies: Mapping[str, _Tally]) -> pa.Table:
        """Returns `outcomes` with recomputed accuracy, and adds the changes to `tallies` (dataset -> tally)."""
        before = outcomes.column("accuracy").to_numpy(zero_copy_only=False).astype(np.float32)
        after = before.copy()
        for row, (sample_id, answer) in enumerate(
            zip(outcomes.column("sample_id").to_pylist(), outcomes.column("answer").to_pylist(), strict=True)
            if "answer" in outcomes.column_names
            else ()
        ):
            scorer = self._scorer.get(sample_id)
            if scorer is None or np.isnan(before[row]):
                continue
            after[row] = scorer.score(answer)
            tally = tallies[self._dataset[sample_id]]
            tally.rows += 1
            tally.rows_changed += bool(after[row] != before[row])
            tally.sum_before += float(before[row])
            tally.sum_after += float(after[row])
        accuracy = pa.array(after, pa.float32(), mask=np.isnan(after))
        return outcomes.set_column(outcomes.column_names.index("accuracy"), "accuracy", accuracy)


def _pieces(source: Cache) -> Iterator[tuple[pa.Table, pa.Table, pa.Table | None]]:
    """Yields (samples, outcomes, tokens) of up to 512 samples at a time, however the rows are spread over the parts."""
    schemas = {
        SAMPLES: pa.unify_schemas(samples_schema(source.d_model)),
        OUTCOMES: pa.unify_schemas(outcomes_schema()),
        TOKENS: latency_tokens_schema(source.d_model)[0],
    }
    where = {table: _sample_ids_of_parts(source.path, table) for table in TABLES}
    for path in part_paths(source.path, SAMPLES):
        ids = sorted(where[SAMPLES][path])
        for start in range(0, len(ids), _SAMPLES_AT_ONCE):
            some = ids[start : start + _SAMPLES_AT_ONCE]
            tables = {
                table: [
                    rows
                    for part, held in where[table].items()
                    if not held.isdisjoint(some)
                    for rows in _rows_of(source.path, part, schemas[table], some)
                ]
                for table in TABLES
            }
            tokens = pa.concat_tables(tables[TOKENS], promote_options="permissive") if tables[TOKENS] else None
            yield (
                pa.concat_tables(tables[SAMPLES], promote_options="permissive"),
                pa.concat_tables(tables[OUTCOMES], promote_options="permissive"),
                tokens,
            )


def _sample_ids_of_parts(cache: Path, table: str) -> dict[Path, set[str]]:
    found = {}
    for path in part_paths(cache, table):
        file = open_part(cache, path)
        with file, parquet_errors(path):
            found[path] = set(pc.unique(file.read(columns=["sample_id"]).column(0)).to_pylist())
    return found


def _rows_of(cache: Path, path: Path, fields: pa.Schema, ids: Sequence[str]) -> Iterator[pa.Table]:
    file = open_part(cache, path)
    wanted = pa.array(ids, pa.string())
    with file, parquet_errors(path):
        names = [name for name in fields.names if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=names):
            rows = batch.filter(pc.is_in(batch.column("sample_id").cast(pa.string()), value_set=wanted))
            if rows.num_rows:
                yield pa.Table.from_batches([rows]).cast(pa.schema([fields.field(name) for name in rows.schema.names]))
