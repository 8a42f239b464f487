"""Training curves: the reward on `val` at every evaluation, per seed, with runs of the exact gradient as reference."""

from __future__ import annotations

from typing import NamedTuple

from ..training_logs import TrainingLog
from .cells import DataTable, number, table
from .source import Absent, ReportSource

EXACT = "exact"


class TrainingCurves(NamedTuple):
    """Mean reward on `val` of greedy choices, over all budgets."""

    runs: tuple[TrainingLog, ...]  # trained with sampled choices (GRPO)
    references: tuple[TrainingLog, ...]  # trained with the exact gradient
    table_reward: float | None  # of the budget-only table on the same samples; None if not recorded or not the same
    oracle_reward: float | None

    @property
    def caption(self) -> str:
        reference = (
            "The dotted curves with a cross were trained with the exact gradient of the expected reward, the yardstick "
            "for sampled choices."
            if self.references
            else "No run with the exact gradient was given as a reference (train one with --estimator exact)."
        )
        oracle = "" if self.oracle_reward is None else f"The oracle reaches {self.oracle_reward:.3f} there. "
        return (
            "Greedy choices on the samples that checkpoints are selected on, at every evaluation; the marker is the "
            f"checkpoint that was kept. {reference} {oracle}One curve per seed, without intervals."
        )

    @property
    def table(self) -> DataTable:
        return table(
            ("controllers", "seed", "gradient", "epoch", "mean reward on val"),
            (
                (run.name, number(run.seed, 0), run.estimator, number(one.epoch, 0), number(one.reward, 4))
                for run in (*self.runs, *self.references)
                for one in run.evaluations
            ),
        )


def training_curves(source: ReportSource) -> TrainingCurves | Absent:
    logs = source.training
    if source.report.folds:
        return Absent("cross-validation keeps no training logs")
    if not logs:
        return Absent("no training log is beside the controllers")
    tables, oracles = {log.val_table_reward for log in logs}, {log.val_oracle_reward for log in logs}
    return TrainingCurves(
        tuple(log for log in logs if log.estimator != EXACT),
        tuple(log for log in logs if log.estimator == EXACT),
        tables.pop() if len(tables) == 1 else None,
        oracles.pop() if len(oracles) == 1 else None,
    )
