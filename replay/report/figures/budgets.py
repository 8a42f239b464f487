"""Figures over the budgets: accuracy against latency, reward, achieved latency with the share over budget."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...evaluation.bootstrap import Estimate
from ...evaluation.report import PolicyReport
from ...expected_outcomes import expected_accuracy, expected_latency_ms, mean_over_samples
from .cells import Cell, DataTable, estimate, number, table
from .source import Basis, ReportSource, label


class Point(NamedTuple):
    """A policy under one budget."""

    budget_ms: float
    latency_ms: Estimate  # mean
    accuracy: Estimate  # mean, 0 to 1


class SettingPoint(NamedTuple):
    """One knob setting, chosen for every sample."""

    latency_ms: float
    accuracy: float


class Frontier(NamedTuple):
    """Accuracy against latency."""

    budgets_ms: tuple[float, ...]
    curves: dict[str, tuple[Point, ...]]  # policy -> one point per budget
    fixed: dict[str, Point]  # policies that always run the same setting
    settings: tuple[SettingPoint, ...]  # all settings with outcomes
    subjects: tuple[str, ...]
    basis: Basis

    @property
    def caption(self) -> str:
        return (
            f"Up and to the left is better. One curve per policy, one point per budget ({len(self.budgets_ms)} of "
            f"them, {self.budgets_ms[0]:g} to {self.budgets_ms[-1]:g} ms). Single markers always run the same setting; "
            f"each grey dot is one of {len(self.settings):,} settings, run for every question. The oracle knows every "
            f"outcome in advance: the upper bound. {self.basis.with_intervals}"
        )

    @property
    def table(self) -> DataTable:
        single = [(name, (point,)) for name, point in self.fixed.items()]
        return table(
            ("policy", "budget (ms)", "mean latency (ms)", "accuracy (%)"),
            (
                (
                    label(name),
                    Cell("any") if name in self.fixed else number(point.budget_ms, 0),
                    estimate(point.latency_ms, 1),
                    estimate(point.accuracy, 1, percent=True),
                )
                for name, points in (*self.curves.items(), *single)
                for point in points
            ),
        )


def frontier(source: ReportSource) -> Frontier:
    """Returns mean accuracy and latency of every policy under every budget, and of every setting."""
    report = source.report
    curves: dict[str, tuple[Point, ...]] = {}
    fixed: dict[str, Point] = {}
    for name in source.drawn:
        policy = report.policies[name]
        points = tuple(
            Point(budget_ms, metrics["latency_ms"], metrics["accuracy"])
            for budget_ms, metrics in zip(report.budgets_ms, policy.overall.per_budget, strict=True)
        )
        if len(policy.settings) == 1:
            fixed[name] = points[0]
        else:
            curves[name] = points
    return Frontier(report.budgets_ms, curves, fixed, _settings(source), report.subjects, source.basis)


def _settings(source: ReportSource) -> tuple[SettingPoint, ...]:
    accuracy_X, latency_ms_X = setting_means(source)
    known_X = np.isfinite(accuracy_X) & np.isfinite(latency_ms_X)
    pairs = zip(latency_ms_X[known_X].tolist(), accuracy_X[known_X].tolist(), strict=True)
    return tuple(SettingPoint(*pair) for pair in pairs)


def setting_means(source: ReportSource) -> tuple[np.ndarray, np.ndarray]:
    """Returns each setting's mean accuracy and latency over the report's samples, [X] each; NaN without outcomes.

    Missing outcomes count with their expected values, as in the baselines.
    """
    tables, sample_N = source.report.decisions.tables, source.report.decisions.sample_N
    accuracy_NX, latency_ms_NX = tables.accuracy_SX[sample_N], tables.latency_ms_SX[sample_N]
    tier_X = tables.space.value_index_KX[0]
    return (
        mean_over_samples(accuracy_NX, expected_accuracy(accuracy_NX)),
        mean_over_samples(latency_ms_NX, expected_latency_ms(latency_ms_NX, tier_X)),
    )


class RewardByBudget(NamedTuple):
    """Mean reward of every policy under every budget."""

    budgets_ms: tuple[float, ...]
    curves: dict[str, tuple[Estimate, ...]]
    weights: dict[str, float]  # of the reward's terms
    subjects: tuple[str, ...]
    basis: Basis

    @property
    def caption(self) -> str:
        weights = ", ".join(f"{name} {value:g}" for name, value in self.weights.items())
        return (
            "The reward adds accuracy and time saved, and subtracts time over budget and complexity (weights: "
            f"{weights}); it is what controllers are trained for. Policies that ignore the budget may leave the range "
            f"shown. {self.basis.with_intervals}"
        )

    @property
    def table(self) -> DataTable:
        return table(
            ("policy", *(f"{budget_ms:g} ms" for budget_ms in self.budgets_ms)),
            ((label(name), *(estimate(one) for one in curve)) for name, curve in self.curves.items()),
        )


def reward_by_budget(source: ReportSource) -> RewardByBudget:
    report = source.report
    curves = {name: _over_budgets(report.policies[name], "reward") for name in source.drawn}
    return RewardByBudget(report.budgets_ms, curves, report.reward_weights, report.subjects, source.basis)


class AchievedLatency(NamedTuple):
    """Latency of one policy under every budget."""

    mean_ms: tuple[Estimate, ...]
    p95_ms: tuple[Estimate, ...]  # over timed runs or samples, see `LatencyByBudget.percentiles_over`
    over_budget: tuple[Estimate, ...]  # share of requests, 0 to 1


class LatencyByBudget(NamedTuple):
    """Requested against achieved latency."""

    budgets_ms: tuple[float, ...]
    policies: dict[str, AchievedLatency]
    subjects: tuple[str, ...]
    percentiles_over: str  # "runs" or "latency_ms"
    basis: Basis

    @property
    def caption(self) -> str:
        pooled = "all timed runs" if self.percentiles_over == "runs" else "the questions"
        shaded = (
            f"The shaded area reaches from the mean to the 95th percentile over {pooled} ({self.subjects[0]}). "
            if self.subjects
            else ""
        )
        return (
            f"Above: mean latency under each budget; below the dotted line is in time. {shaded}Below: the share of "
            f"requests that took longer than their budget. {self.basis.with_intervals}"
        )

    @property
    def table(self) -> DataTable:
        return table(
            ("policy", "budget (ms)", "mean latency (ms)", "95th percentile (ms)", "over budget (%)"),
            (
                (
                    label(name),
                    number(budget_ms, 0),
                    estimate(policy.mean_ms[place], 1),
                    estimate(policy.p95_ms[place], 1),
                    estimate(policy.over_budget[place], 1, percent=True),
                )
                for name, policy in self.policies.items()
                for place, budget_ms in enumerate(self.budgets_ms)
            ),
        )


def latency_by_budget(source: ReportSource) -> LatencyByBudget:
    report = source.report
    columns = ("latency_ms", "latency_p95_ms", "violation_rate")
    policies = {
        name: AchievedLatency(*(_over_budgets(report.policies[name], column) for column in columns))
        for name in source.drawn
    }
    return LatencyByBudget(report.budgets_ms, policies, report.subjects, report.latency_percentiles_over, source.basis)


def _over_budgets(policy: PolicyReport, metric: str) -> tuple[Estimate, ...]:
    return tuple(metrics[metric] for metrics in policy.overall.per_budget)
