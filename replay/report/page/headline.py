"""What a page says first: whether the controllers answer more questions within their budgets than fixed settings do.

Over all budgets of the report, whatever the result is; the first table has each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...evaluation.bootstrap import ClusterBootstrap, Estimate
from ...evaluation.report import BETTER, NOT_SHOWN, WORSE
from ...evaluation.request_stats import STATS, RequestSet, request_stats
from ...evaluation.verdicts import verb
from ..figures.policies import Difference, Differences, article, differences, in_words
from ..figures.source import ReportSource, label, plural

MIXED = "mixed"  # several controllers with different verdicts
FIXED = "table"  # one setting for each budget


class Verdict(NamedTuple):
    """One paired comparison as a sentence."""

    verdict: str  # better, worse, no difference shown, mixed
    text: str


class Headline(NamedTuple):
    """The first screen of a page."""

    title: str
    verdict: str | None  # of the title's comparison; None if the page is not about controllers
    lines: tuple[str, ...]
    verdicts: tuple[Verdict, ...]  # in mean reward, over all budgets


def headline(source: ReportSource) -> Headline:
    report = source.report
    subjects = [name for name in report.subjects if name in report.policies]
    verdicts = _verdicts(source)
    if not subjects or FIXED not in report.policies:
        return Headline(_baseline_title(source), None, _baseline_lines(source), verdicts)
    gains = [in_time_difference(source, name, FIXED) for name in subjects]
    found = [_shown(gain) for gain in gains]
    who = "the controllers" if len(subjects) == 1 else f"the {len(subjects)} sets of controllers"
    title = (
        f"{_under(source)}, {who} answer {_range([_in_time(source, name) for name in subjects])} % of questions "
        f"correctly in time; the budget-only table, {_range([_in_time(source, FIXED)])} %"
    )
    if len(set(found)) == 1:
        verdict = found[0]
        title += f": {_WORDS[verdict]}."
    else:
        verdict = NOT_SHOWN
        shown = [f"{found.count(one)} of {len(found)} shown {one}" for one in (BETTER, WORSE) if one in found]
        title += f" ({', '.join(shown)})."
    return Headline(title, verdict, tuple(_lines(source, subjects, gains)), verdicts)


_WORDS = {BETTER: "shown better", WORSE: "shown worse", NOT_SHOWN: "no difference shown"}


def _under(source: ReportSource) -> str:
    budgets_ms = source.report.budgets_ms
    if len(budgets_ms) == 1:
        return f"Under a budget of {budgets_ms[0]:g} ms"
    return f"Averaged over {len(budgets_ms)} budgets from {min(budgets_ms):g} to {max(budgets_ms):g} ms"


def _shown(gain: Estimate) -> str:
    """Returns the verdict of one comparison: its interval, of a single one, needs no correction."""
    if gain.low is None or gain.high is None:
        return NOT_SHOWN
    return BETTER if gain.low > 0 else WORSE if gain.high < 0 else NOT_SHOWN


def in_time_difference(source: ReportSource, policy: str, versus: str) -> Estimate:
    """Returns the paired difference in the share of correct answers in time over all budgets, with its interval."""
    report, found = source.report, source.report.decisions
    requests = RequestSet.of(found.tables, found.sample_N, found.budget_M)
    in_time = {
        name: np.mean([_in_time_N(requests, found.chosen[one]) for one in found.choosers(name)], axis=0)
        for name in (policy, versus)
    }
    value_N = in_time[policy] - in_time[versus]
    bootstrap = ClusterBootstrap.draw(
        found.tables.cluster_S[found.sample_N],
        resamples=report.resamples,
        seed=report.seed,
        confidence=report.confidence,
    )
    return bootstrap.estimate(float(value_N.mean()), bootstrap.resampled_means(value_N[:, None])[:, 0])


def _in_time_N(requests: RequestSet, chosen_NM: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the share of each sample's budgets under which it is answered correctly in time."""
    in_time_NM = request_stats(requests, chosen_NM)[:, :, STATS.index("accuracy_in_time")]
    return np.asarray(in_time_NM.mean(axis=1))


def _in_time(source: ReportSource, policy: str, place: int | None = None) -> float:
    """Returns the share of correct answers in time: over all budgets, or under the one at `place`."""
    overall = source.report.policies[policy].overall
    value = (overall.metrics if place is None else overall.per_budget[place])["accuracy_in_time"].value
    assert value is not None, "every sample of a report has an outcome"
    return value


def _range(shares: Sequence[float]) -> str:
    low, high = f"{100 * min(shares):.1f}", f"{100 * max(shares):.1f}"
    return low if low == high else f"{low} to {high}"


def _lines(source: ReportSource, subjects: list[str], gains: list[Estimate]) -> list[str]:
    report, lines = source.report, []
    if len(subjects) == 1:
        lines.append(
            f"The difference is {_points(gains[0], report.confidence)}. By budget: {_by_budget(source, subjects[0])}."
        )
    else:
        each = "; ".join(
            f"{name}: {_points(gain, report.confidence)}" for name, gain in zip(subjects, gains, strict=True)
        )
        lines.append(f"Differences: {each}.")
    lines.append(
        f"An answer that takes longer than its budget counts as wrong; all {plural(len(report.budgets_ms), 'budget')} "
        "count equally, and the first table has each of them. The budget-only table answers all questions under one "
        "budget with the same setting: the one with the highest mean reward on the training questions."
    )
    if "oracle" in report.policies:
        lines.append(
            f"A perfect choice for every question (the oracle) would answer {_range([_in_time(source, 'oracle')])} %."
        )
    return lines


def _by_budget(source: ReportSource, policy: str) -> str:
    """Returns the difference in correct answers in time under each budget, in percentage points."""
    budgets_ms = source.report.budgets_ms
    return ", ".join(
        f"{100 * (_in_time(source, policy, place) - _in_time(source, FIXED, place)):+.1f} ({budget_ms:g} ms)"
        for place, budget_ms in enumerate(budgets_ms)
    )


def _points(gain: Estimate, confidence: float) -> str:
    if gain.value is None:
        return "not known"
    text = f"{100 * gain.value:+.1f} percentage points"
    if gain.low is None or gain.high is None:
        return f"{text} (no interval can be given)"
    return f"{text} ({100 * confidence:g} % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f})"


def _verdicts(source: ReportSource) -> tuple[Verdict, ...]:
    """Returns one sentence for each baseline, about all controllers; the largest difference first."""
    found = differences(source)
    if not isinstance(found, Differences):
        return ()
    against: dict[str, list[Difference]] = {}
    for one in found.rows:
        if one.versus not in source.report.subjects:
            against.setdefault(one.versus, []).append(one)
    return tuple(_verdict(rows) for rows in against.values())


def _verdict(rows: list[Difference]) -> Verdict:
    shared = {one.verdict for one in rows}
    if len(rows) == 1:
        return Verdict(
            rows[0].verdict, f"{rows[0].policy} {verb(rows[0].policy)} {rows[0].words}: {in_words(rows[0].reward)}"
        )
    each = ", ".join(f"{one.policy} {in_words(one.reward)}" for one in rows)
    versus = f"{article(rows[0].versus)}{label(rows[0].versus)}"
    return Verdict(shared.pop() if len(shared) == 1 else MIXED, f"against {versus}: {each}")


def _baseline_title(source: ReportSource) -> str:
    report = source.report
    if FIXED in report.policies and "oracle" in report.policies:
        return (
            f"{_under(source)}, the budget-only table answers {_range([_in_time(source, FIXED)])} % of questions "
            "correctly in time; a perfect choice for every question would answer "
            f"{_range([_in_time(source, 'oracle')])} %."
        )
    return f"What the settings of {source.cache.manifest.model_name} achieve on {plural(report.n_samples, 'question')}."


def _baseline_lines(source: ReportSource) -> tuple[str, ...]:
    report = source.report
    lines = [
        f"{label(name).capitalize()}: {_range([figures['accuracy'].value or 0.0])} % correct in "
        f"{figures['latency_ms'].value or 0.0:,.1f} ms on average."
        for name in ("full", "cheapest")
        if name in report.policies
        for figures in (report.policies[name].overall.metrics,)
    ]
    lines.append(
        "An answer that takes longer than its budget counts as wrong. The budget-only table has one setting for each "
        "budget. No controllers were given: this page shows what there is to gain."
        if not report.subjects
        else "The budget-only table was not reported, so controllers are not compared with a fixed setting."
    )
    return tuple(lines)
