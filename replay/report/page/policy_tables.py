"""The tables of a page: every policy under every budget, over all budgets, and on every dataset."""

from __future__ import annotations

from typing import NamedTuple

from ...evaluation.bootstrap import Estimate
from ...evaluation.report import Group
from ..figures.cells import Cell, DataTable, estimate, number, table
from ..figures.source import ReportSource, label

UNDEFINED = Estimate(None, None, None)
LEAST_GAP = -10.0
COLUMNS = (
    "accuracy (%)",
    "correct in time (%)",
    "reward",
    "mean latency (ms)",
    "median latency (ms)",
    "95th percentile (ms)",
    "over budget (%)",
    "gap closed (%)",
)


class TitledTable(NamedTuple):
    """A table of the page."""

    name: str  # of the anchor
    title: str
    note: str
    table: DataTable


def at_a_glance(source: ReportSource) -> TitledTable:
    """Returns the share of correct answers in time, of every policy under every budget."""
    report = source.report
    return TitledTable(
        "glance",
        "Correct within the budget (%)",
        "Share of questions that are answered correctly within the budget, with its interval. Answers that take longer "
        f"count as wrong. {source.basis.with_intervals}",
        table(
            ("policy", *(f"{budget_ms:g} ms" for budget_ms in report.budgets_ms)),
            (
                (
                    label(name),
                    *(
                        estimate(metrics["accuracy_in_time"], 1, percent=True)
                        for metrics in report.policies[name].overall.per_budget
                    ),
                )
                for name in source.drawn
                if name != "random"
            ),
        ),
    )


def policy_tables(source: ReportSource) -> list[TitledTable]:
    report = source.report
    datasets = list(next(iter(report.policies.values())).datasets)
    tables = [
        TitledTable(
            "policies",
            "All policies, over all budgets",
            f"Every request has the same weight. {source.basis.with_intervals}",
            table(
                ("policy", *COLUMNS),
                ((label(name), *_cells(policy.overall)) for name, policy in report.policies.items()),
            ),
        )
    ]
    if len(datasets) > 1:
        tables.append(
            TitledTable(
                "datasets",
                "By dataset, over all budgets",
                source.basis.with_intervals,
                table(
                    ("dataset", "policy", "questions", *COLUMNS),
                    (
                        (name, label(policy), number(group.n_samples, 0), *_cells(group))
                        for name in datasets
                        for policy, found in report.policies.items()
                        for group in (found.datasets[name],)
                    ),
                ),
            )
        )
    return tables


def _gap_closed(one: Estimate) -> Cell:
    """Returns the share in percent; far below the table its digits say nothing."""
    if one.value is not None and one.value < LEAST_GAP:
        return Cell(f"< {100 * LEAST_GAP:.0f}", one.value)
    return estimate(one, 0, percent=True)


def _cells(group: Group) -> tuple[Cell, ...]:
    metrics = group.metrics
    return (
        estimate(metrics["accuracy"], 1, percent=True),
        estimate(metrics["accuracy_in_time"], 1, percent=True),
        estimate(metrics["reward"]),
        estimate(metrics["latency_ms"], 1),
        estimate(metrics["latency_p50_ms"], 1),
        estimate(metrics["latency_p95_ms"], 1),
        estimate(metrics["violation_rate"], 1, percent=True),
        _gap_closed(metrics.get("gap_closed", UNDEFINED)),
    )
