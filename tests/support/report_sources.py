"""Evaluations with outcomes that a reader can check by hand, as the figures and the page of a report receive them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from knobctl.data.cache.reader import open_cache
from knobctl.replay.evaluation.build_report import cache_record, report_of_choices
from knobctl.replay.evaluation.request_stats import RequestSet
from knobctl.replay.report.figures.source import ReportSource
from knobctl.replay.tables import ReplayTables
from knobctl.tests.support.caches import write_array_cache

LOW_12, LOW_16, HIGH_12, HIGH_16 = range(4)  # the settings of the space `FOUR`
ACCURACY_SX = [[1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]]
LATENCY_MS_SX = [[10, 20, 30, 40]] * 4
BUDGETS_MS = (20.0, 40.0)
CHOICES = {  # policy -> samples x budgets
    "mine": [[LOW_12, HIGH_16], [LOW_16, HIGH_16], [LOW_16, HIGH_16], [LOW_12, HIGH_16]],
    "table": [[LOW_12, HIGH_16]] * 4,
    "oracle": [[LOW_12, LOW_12], [LOW_16, LOW_16], [LOW_12, HIGH_12], [LOW_12, HIGH_16]],
    "full": [[HIGH_16, HIGH_16]] * 4,
}


def hand_made_source(
    path: Path,
    *,
    choices: Mapping[str, Sequence[Sequence[int]]] = CHOICES,
    subjects: Sequence[str] = ("mine",),
    datasets: Sequence[str] = ("easy", "easy", "hard", "hard"),
) -> ReportSource:
    """Writes a cache of four test samples, each its own image, and returns the evaluation of these choices."""
    cache = open_cache(
        write_array_cache(
            path,
            np.array(ACCURACY_SX),
            np.array(LATENCY_MS_SX),
            budgets_ms=BUDGETS_MS,
            splits=["test"] * 4,
            datasets=datasets,
        )
    )
    tables = ReplayTables.from_cache(cache)
    report = report_of_choices(
        RequestSet.of(tables, np.arange(4), (0, 1)),
        {name: np.array(chosen) for name, chosen in choices.items()},
        split="test",
        subjects=subjects,
        resamples=200,
    )
    report.cache = cache_record(cache)
    return ReportSource(cache, report)
