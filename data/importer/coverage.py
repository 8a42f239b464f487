"""Says what a results directory lacks: ranks, questions, one meaning of num_blocks. Changes no row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import multimode
from typing import Any

import polars as pl

from .identity import CONFIGURATION, UNKNOWN_BLOCKS
from .names import TIER_ORDER
from .reading import FileReading
from .report import Finding

Configuration = tuple[str, str, int, int]
_MOST_RANKS = 1_000  # a file may call itself rank 999999999


def file_findings(readings: Sequence[FileReading]) -> list[Finding]:
    """Returns which configurations were joined from several files, and which ranks are not there."""
    by_configuration: dict[Configuration, list[FileReading]] = defaultdict(list)
    for reading in readings:
        by_configuration[reading.file.configuration].append(reading)
    usual_ranks = _usual_ranks(_merged_ranks(readings))
    highest_rank: dict[str, int] = defaultdict(int)
    for reading in readings:
        if reading.file.rank is not None:
            highest_rank[reading.file.dataset] = max(highest_rank[reading.file.dataset], reading.file.rank)
    findings = []
    for configuration, parts in by_configuration.items():
        label = configuration_label(*configuration)
        merged = [part for part in parts if part.file.rank is None and part.table_ipc is not None]
        ranks = {part.file.rank for part in parts if part.file.rank is not None and part.rows_read}
        if len(merged) > 1:
            findings.append(Finding("split_files", "", 0, f"{label}, {len(merged)} files"))
        if ranks and not merged:
            findings.append(Finding("rank_files", "", 0, f"{label}, {len(ranks)} rank files"))
        expected = min(max(highest_rank[configuration[0]] + 1, usual_ranks.get(configuration[0], 0)), _MOST_RANKS)
        if not merged and (absent := sorted(set(range(expected)) - ranks)) and ranks:
            findings.append(Finding("missing_ranks", "", 0, f"{label}, rank {', '.join(map(str, absent))}"))
    return findings


def question_findings(rows: pl.DataFrame, readings: Sequence[FileReading]) -> list[Finding]:
    """Returns the configurations that lack questions, and the values of num_blocks that mean several block sets."""
    findings = []
    totals = dict(rows.group_by("dataset").agg(pl.col("example_id").n_unique()).iter_rows())
    merged_ranks = _merged_ranks(readings)
    usual_ranks = _usual_ranks(merged_ranks)
    counts = rows.group_by(CONFIGURATION).agg(pl.len().alias("questions"))
    for dataset, tier, top_k, num_blocks, block_set, questions in counts.iter_rows():
        lacking = totals[dataset] - questions
        if lacking <= 0:
            continue
        detail = f"{configuration_label(dataset, tier, top_k, num_blocks)}, {questions} of {totals[dataset]} questions"
        ranks = merged_ranks.get((dataset, tier, top_k, num_blocks), 0)
        if 0 < ranks < usual_ranks.get(dataset, 0):
            detail += f"; rows of {ranks} ranks, other configurations have {usual_ranks[dataset]}"
        findings.append(Finding("missing_questions", "", lacking, detail + _named(block_set)))
    by_count: dict[int, set[str]] = defaultdict(set)
    for num_blocks, block_set in counts.select("num_blocks", "block_set").iter_rows():
        by_count[num_blocks].add(block_set)
    for num_blocks, block_sets in by_count.items():
        if len(block_sets) > 1:
            listed = " or ".join(f"[{text}]" for text in sorted(block_sets))
            findings.append(Finding("mixed_blocks", "", 0, f"num_blocks {num_blocks}: {listed}"))
    return findings


def _merged_ranks(readings: Sequence[FileReading]) -> dict[Configuration, int]:
    """How many ranks' rows the merged files of each configuration join, as far as `sample_id` shows."""
    ranks: dict[Configuration, int] = defaultdict(int)
    for reading in readings:
        if reading.file.rank is None and reading.ranks:
            ranks[reading.file.configuration] += reading.ranks
    return ranks


def _usual_ranks(merged_ranks: Mapping[Configuration, int]) -> dict[str, int]:
    """The number of ranks that most configurations of a dataset have; of equally many the larger."""
    by_dataset: dict[str, list[int]] = defaultdict(list)
    for configuration, ranks in merged_ranks.items():
        by_dataset[configuration[0]].append(ranks)
    return {dataset: max(multimode(counts)) for dataset, counts in by_dataset.items()}


def configurations(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Returns what was kept of each configuration, for the report's table."""
    totals = dict(rows.group_by("dataset").agg(pl.col("example_id").n_unique()).iter_rows())
    table = rows.group_by(CONFIGURATION).agg(
        pl.col("file").n_unique().alias("files"),
        pl.len().alias("questions"),
        pl.col("accuracy").null_count().alias("accuracy_missing"),
        pl.col("latency_ms").null_count().alias("latency_missing"),
        pl.col("accuracy").cast(pl.Float64).mean().alias("mean_accuracy"),
        pl.col("latency_ms").cast(pl.Float64).median().alias("median_latency_ms"),
    )
    records = sorted(table.to_dicts(), key=lambda r: (r["dataset"], tier_key(r["tier"]), *list(r.values())[2:5]))
    for record in records:
        record["questions_missing"] = totals[record["dataset"]] - record["questions"]
        record["active_block_indices"] = parse_block_set(record.pop("block_set"))
    return records


def parse_block_set(text: str) -> list[int] | None:
    """Returns the blocks that `block_set` names, ascending; None for unknown ones."""
    return None if text == UNKNOWN_BLOCKS else [int(block) for block in text.split(",")]


def tier_key(tier: str) -> tuple[int, str]:
    """Sorts tiers from low to high; unusual names follow."""
    return (TIER_ORDER.index(tier) if tier in TIER_ORDER else len(TIER_ORDER), tier)


def configuration_label(dataset: str, tier: str, top_k: int, num_blocks: int) -> str:
    return f"{dataset} {tier}/k{top_k}/n{num_blocks}"


def _named(block_set: str) -> str:
    return "; blocks unknown" if block_set == UNKNOWN_BLOCKS else ""
