"""Figures that compare policies: paired differences, gap closed per dataset, the shares of knob values."""

from __future__ import annotations

from typing import NamedTuple

from ...evaluation.bootstrap import Estimate
from ...evaluation.report import BETTER, OVERALL, WORSE
from .cells import DataTable, estimate, number, table
from .source import Absent, Basis, ReportSource, label

VERDICTS = {BETTER: "better than", WORSE: "worse than"}
UNDECIDED = "not shown to differ from"


class Difference(NamedTuple):
    """A paired difference in mean reward over all budgets, `policy` minus `versus`."""

    policy: str
    versus: str
    reward: Estimate
    verdict: str  # as in the report: better, worse, no difference shown

    @property
    def words(self) -> str:
        """The verdict as part of a sentence: "better than the budget-only table"."""
        return f"{VERDICTS.get(self.verdict, UNDECIDED)} {article(self.versus)}{label(self.versus)}"


class Differences(NamedTuple):
    """Paired differences, largest first."""

    rows: tuple[Difference, ...]
    basis: Basis

    @property
    def caption(self) -> str:
        return (
            "Paired differences: both policies answer the same questions under the same budgets. Verdicts are "
            "corrected for the number of comparisons (Holm), intervals are not; where no difference is shown, there "
            f"may be one all the same. {self.basis.with_intervals}"
        )

    @property
    def table(self) -> DataTable:
        return table(
            ("policy", "compared with", "difference in reward", "verdict"),
            ((one.policy, label(one.versus), estimate(one.reward, sign=True), one.verdict) for one in self.rows),
        )


def differences(source: ReportSource) -> Differences | Absent:
    report = source.report
    found = [
        Difference(one.policy, one.versus, one.differences["reward"], one.verdict)
        for one in report.comparisons
        if one.group == OVERALL and one.policy in report.subjects
    ]
    if not found:
        return Absent("no controllers were given that could be compared")
    found.sort(key=lambda one: -(one.reward.value or 0.0))
    return Differences(tuple(found), source.basis)


class GapRow(NamedTuple):
    """A dataset, or all samples."""

    name: str
    n_samples: int
    closed: dict[str, Estimate]  # policy -> 0: the budget-only table, 1: the oracle


class GapClosed(NamedTuple):
    """Share of the gap between the budget-only table and the oracle that policies close, by dataset."""

    rows: tuple[GapRow, ...]
    policies: tuple[str, ...]
    subjects: tuple[str, ...]
    basis: Basis

    @property
    def caption(self) -> str:
        return (
            "How far a policy gets from the budget-only table, the best setting per budget regardless of the question, "
            "towards the oracle, in mean reward over all budgets. Part of the gap is noise that nothing can predict. "
            "Wide intervals may leave the range shown. "
            f"{self.basis.with_intervals}"
        )

    @property
    def table(self) -> DataTable:
        return table(
            ("dataset", "questions", *(f"{label(name)} (%)" for name in self.policies)),
            (
                (
                    row.name,
                    number(row.n_samples, 0),
                    *(estimate(row.closed[name], 0, percent=True) for name in self.policies),
                )
                for row in self.rows
            ),
        )


def gap_closed(source: ReportSource) -> GapClosed | Absent:
    report = source.report
    if "table" not in report.policies:
        return Absent("the budget-only table, from which the gap is counted, was not reported")
    ends = ("table", "oracle", "full", "cheapest", "random", "best_fixed")  # the ends of the scale, and far below it
    policies = tuple(name for name in source.drawn if name not in ends)
    if not policies:
        return Absent("no policy that learns from the question was reported")
    groups = [("all questions", {name: report.policies[name].overall for name in policies})]
    datasets = list(report.policies[policies[0]].datasets)
    if len(datasets) > 1:
        groups += [(one, {name: report.policies[name].datasets[one] for name in policies}) for one in datasets]
    rows = tuple(
        GapRow(
            title,
            group[policies[0]].n_samples,
            {name: found.metrics["gap_closed"] for name, found in group.items()},
        )
        for title, group in groups
    )
    if all(one.value is None for row in rows for one in row.closed.values()):
        return Absent("the budget-only table is as good as the oracle, so that there is no gap to close")
    return GapClosed(rows, policies, report.subjects, source.basis)


class KnobShares(NamedTuple):
    """Share of requests for each value of each knob, under every budget, for one policy."""

    policy: str
    budgets_ms: tuple[float, ...]
    knobs: dict[str, dict[str, tuple[float, ...]]]  # knob -> value -> one share per budget, 0 to 1
    basis: Basis

    @property
    def caption(self) -> str:
        return (
            f"What {article(self.policy)}{label(self.policy)} chose under each budget, one panel per knob. "
            f"{self.basis.counted}; shares of these questions, without intervals."
        )

    @property
    def table(self) -> DataTable:
        return table(
            ("knob", "value", *(f"{budget_ms:g} ms (%)" for budget_ms in self.budgets_ms)),
            (
                (knob.replace("_", " "), value, *(number(share, 1, percent=True) for share in shares))
                for knob, values in self.knobs.items()
                for value, shares in values.items()
            ),
        )


def knob_shares(source: ReportSource) -> KnobShares | Absent:
    """Returns the shares of the first subject; of the oracle if there is none."""
    report = source.report
    shown = [*report.subjects[:1], *(name for name in ("oracle",) if name in report.policies)]
    if not shown:
        return Absent("neither controllers nor the oracle were reported")
    per_budget = report.policies[shown[0]].knobs_per_budget
    knobs = {
        knob: {value: tuple(shares[knob][value] for shares in per_budget) for value in values}
        for knob, values in per_budget[0].items()
        if len(values) > 1
    }
    if not knobs:
        return Absent("every knob of this cache has a single value")
    return KnobShares(shown[0], report.budgets_ms, knobs, source.basis)


def article(policy: str) -> str:
    """Returns "the " before a baseline's label, and nothing before the name of controllers."""
    return "" if label(policy) == policy and policy != "oracle" else "the "


def in_words(reward: Estimate) -> str:
    """Returns a difference with its interval, as part of a sentence."""
    if reward.value is None:
        return "not known"
    if reward.low is None or reward.high is None:
        return f"{reward.value:+.3f} (no interval can be given)"
    return f"{reward.value:+.3f} (interval {reward.low:+.3f} to {reward.high:+.3f})"
