"""Findings about what a results directory lacks: ranks, questions, one block set per num_blocks. Changes no row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import multimode
from typing import Any

import polars as pl

from .deduplication import CONFIGURATION, UNKNOWN_BLOCKS
from .reading import FileReading
from .report import Finding
from .result_files import TIER_ORDER

Configuration = tuple[str, str, int, int]
_MAX_RANKS = 1_000  # the rank in a file name may be 999999999


def file_findings(readings: Sequence[FileReading]) -> list[Finding]:
    """Returns findings about configurations joined from several files, and about missing ranks."""
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
        expected = min(max(highest_rank[configuration[0]] + 1, usual_ranks.get(configuration[0], 0)), _MAX_RANKS)
        if not merged and (absent := sorted(set(range(expected)) - ranks)) and ranks:
            findings.append(Finding("missing_ranks", "", 0, f"{label}, rank {', '.join(map(str, absent))}"))
    return findings


def question_findings(rows: pl.DataFrame, readings: Sequence[FileReading]) -> list[Finding]:
    """Returns findings about configurations that lack questions, and values of num_blocks with several block sets."""
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
    """Returns the number of ranks joined in the merged files of each configuration, inferred from `sample_id`."""
    ranks: dict[Configuration, int] = defaultdict(int)
    for reading in readings:
        if reading.file.rank is None and reading.ranks:
            ranks[reading.file.configuration] += reading.ranks
    return ranks


def _usual_ranks(merged_ranks: Mapping[Configuration, int]) -> dict[str, int]:
    """Returns each dataset's most frequent number of ranks per configuration; the larger of equally frequent ones."""
    by_dataset: dict[str, list[int]] = defaultdict(list)
    for configuration, ranks in merged_ranks.items():
        by_dataset[configuration[0]].append(ranks)
    return {dataset: max(multimode(counts)) for dataset, counts in by_dataset.items()}


def configurations(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Returns what was kept of each configuration, for the table of the report."""
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
    """Returns the blocks in `block_set`, ascending; None if they are unknown."""
    return None if text == UNKNOWN_BLOCKS else [int(block) for block in text.split(",")]


def tier_key(tier: str) -> tuple[int, str]:
    """Sort key of tiers: low to high, then unknown names."""
    return (TIER_ORDER.index(tier) if tier in TIER_ORDER else len(TIER_ORDER), tier)


def configuration_label(dataset: str, tier: str, top_k: int, num_blocks: int) -> str:
    return f"{dataset} {tier}/k{top_k}/n{num_blocks}"


def _named(block_set: str) -> str:
    return "; blocks unknown" if block_set == UNKNOWN_BLOCKS else ""
