"""The short form of a report: a headline in plain words, and one table of policies with the differences from each."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..evaluation.report import BETTER, NOT_SHOWN, OVERALL, WORSE, EvaluationReport
from ..policies.registry import BASELINES
from .columns import Record, figure, figure_table
from .live_tables import render_live
from .tables import render_notes


def render_summary(report: EvaluationReport | Record) -> RenderableType:
    """Returns the headline, one table of policies, the live run and the warnings. `render_report` has the details."""
    record = report.to_dict() if isinstance(report, EvaluationReport) else report
    table = summary_table(record) if len(record["subjects"]) == 1 else policies_table(record)
    parts: list[RenderableType] = [Text(headline(record)), table]
    if record["live"]:
        parts.append(render_live(record["live"]))
    parts += [*render_notes(record), Text("--details shows every budget, dataset and knob.", style="dim")]
    return Lines(*[line for part in parts for line in (part, Text(""))][:-1])


def headline(record: Record) -> str:
    """Returns what each subject of a report achieves and how it compares, in a few sentences."""
    lines = []
    for name in record["subjects"]:
        is_plural = name.startswith("controllers")
        answer, take, exceed, are = (
            ("answer", "take", "exceed", "are") if is_plural else ("answers", "takes", "exceeds", "is")
        )
        subject = f"The {name}" if is_plural else name
        correct, ms, missed = _achieved(record, name)
        lines.append(
            f"{subject} {answer} {correct} of the questions correctly, {take} {ms} ms on average and {exceed} the "
            f"latency budget in {missed} of the requests."
        )
        if "full" in record["policies"] and len(lines) == 1:
            correct, ms, missed = _achieved(record, "full")
            lines[0] += (
                f" The full model answers {correct} correctly, takes {ms} ms and exceeds the budget in {missed}."
            )
        the = f"the {name}" if is_plural else name
        for verdict, words in (
            (BETTER, f"By mean reward, {the} {are} shown to be better than"),
            (WORSE, f"By mean reward, {the} {are} shown to be worse than"),
            (NOT_SHOWN, "No difference in mean reward is shown from"),
        ):
            others = [_difference(found) for found in _comparisons(record, name) if found["verdict"] == verdict]
            if others:
                lines.append(f"{words} {_listed(others)}.")
    return "\n".join([*lines, _how(record)])


def summary_table(record: Record) -> Table:
    """Returns a line for each policy, with the first subject's mean reward minus its own."""
    name = record["subjects"][0]
    columns = ("accuracy", "mean ms", "over\nbudget", "reward", f"{name}\nminus it")
    table = figure_table("All budgets", ("policy",), columns)
    compared = {comparison["versus"]: comparison for comparison in _comparisons(record, name)}
    for policy, report in record["policies"].items():
        metrics = report["overall"]["all_budgets"]
        comparison = compared.get(policy)
        table.add_row(
            Text(_label(policy), style="bold" if policy == name else ""),
            figure(metrics["accuracy"]),
            figure(metrics["latency_ms"], 1),
            figure(metrics["violation_rate"], percent=True),
            figure(metrics["reward"]),
            _interval(comparison["differences"]["reward"]) if comparison else "",
        )
    return table


def policies_table(record: Record) -> Table:
    """Returns a line for each policy, for reports on several controllers or on none."""
    columns = ("accuracy", "mean ms", "over\nbudget", "reward", "gap\nclosed")
    table = figure_table("All budgets", ("policy",), columns)
    for policy, report in record["policies"].items():
        metrics = report["overall"]["all_budgets"]
        table.add_row(
            Text(_label(policy), style="bold" if policy in record["subjects"] else ""),
            figure(metrics["accuracy"]),
            figure(metrics["latency_ms"], 1),
            figure(metrics["violation_rate"], percent=True),
            figure(metrics["reward"], interval=True),
            figure(metrics.get("gap_closed"), 2),
        )
    return table


def _comparisons(record: Record, name: str) -> list[Record]:
    """Returns the comparisons of a policy, over all samples, with baselines and with the other subjects."""
    others = {*BASELINES, *record["subjects"]}
    return [
        comparison
        for comparison in record["comparisons"]
        if comparison["policy"] == name and comparison["group"] == OVERALL and comparison["versus"] in others
    ]


def _achieved(record: Record, name: str) -> tuple[str, str, str]:
    """Returns the share of correct answers, the mean latency in ms and the share of missed budgets."""
    metrics = record["policies"][name]["overall"]["all_budgets"]
    return (
        figure(metrics["accuracy"], percent=True),
        figure(metrics["latency_ms"], 1),
        figure(metrics["violation_rate"], percent=True),
    )


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items[:-1]) + " and " + items[-1] if len(items) > 1 else items[0]


def _difference(comparison: Record) -> str:
    versus = comparison["versus"]
    article = "the " if versus in BASELINES or versus.startswith("controllers") else ""
    return f"{article}{_label(versus)} ({_interval(comparison['differences']['reward'])})"


def _interval(reward: Record) -> str:
    if reward["low"] is None:
        return f"{reward['value']:+.3f}"
    return f"{reward['value']:+.3f} [{reward['low']:+.3f}, {reward['high']:+.3f}]"


def _how(record: Record) -> str:
    """Returns on what the report judges, and how its intervals and verdicts are made."""
    seeds = len(record["controllers"]) if record["folds"] else 1
    tested = f"the {record['split']} split"
    if record["folds"]:
        tested = f"cross-validation ({record['folds']} folds) over all samples"
        tested += f", mean of {seeds} controller seeds" if seeds > 1 else ""
    compared = max((len(_comparisons(record, name)) for name in record["subjects"]), default=0)
    corrected = f"; verdicts corrected for {compared} comparisons (Holm)" if compared > 1 else ""
    return (
        f"Judged by {tested}: {record['n_samples']} samples x {len(record['budgets_ms'])} budgets, "
        f"{100 * record['bootstrap']['confidence']:g} % intervals in brackets{corrected}."
    )


def _label(name: str) -> str:
    """Returns a policy's name for people; ablations are named `controllers:only_tier`."""
    return BASELINES[name].label if name in BASELINES else name.partition(":")[2].replace("_", " ") or name
