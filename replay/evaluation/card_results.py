"""The results that a card of controllers shows: those of training on `val`, or those of a report."""

from __future__ import annotations

from ...controllers.card import Results
from ..policies.registry import BASELINES
from ..tables import ReplayTables
from .bootstrap import Estimate
from .report import EvaluationReport
from .verdicts import verdict_sentences

_METRICS = {
    "reward": "reward",
    "accuracy": "accuracy",
    "mean latency (ms)": "latency_ms",
    "share over budget": "violation_rate",
}


def training_results(tables: ReplayTables, reward: float, table: float, oracle: float) -> Results:
    """Returns the rewards on `val` of the controllers, of the budget-only table and of the oracle."""
    sample_N = tables.measured("val")
    comparison = "above" if reward > table else "not above"
    return Results(
        split="val",
        samples=len(sample_N),
        datasets=tuple(sorted({tables.datasets[index] for index in sample_N})),
        columns=("policy", "reward"),
        rows=(("controllers", reward), (BASELINES["table"].label, table), (BASELINES["oracle"].label, oracle)),
        sentences=(
            f"The controllers are {comparison} the budget-only table here; no interval is given.",
            "Their weights were selected on this split, so their reward is optimistic: "
            "`knobctl validate --card` replaces these figures by those of the test split.",
        ),
        metrics={"reward": reward},
    )


def report_results(report: EvaluationReport, subject: str) -> Results:
    """Returns a report's figures over all budgets, and its verdicts on `subject`."""
    rows = tuple(
        (BASELINES[name].label if name in BASELINES else name, *(e.value for e in _estimates(report, name)))
        for name in report.policies
    )
    own = dict(zip(_METRICS.values(), _estimates(report, subject), strict=True))
    return Results(
        split=report.split,
        samples=report.n_samples,
        datasets=tuple(report.policies[subject].datasets),
        columns=("policy", *_METRICS),
        rows=rows,
        sentences=tuple(
            sentence for _, sentence in verdict_sentences(report.to_dict()) if sentence.startswith(f"{subject} ")
        ),
        metrics={name: estimate.value for name, estimate in own.items() if estimate.value is not None},
    )


def _estimates(report: EvaluationReport, name: str) -> list[Estimate]:
    return [report.policies[name].overall.metrics[metric] for metric in _METRICS.values()]
