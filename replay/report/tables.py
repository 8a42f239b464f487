"""Renders a report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..evaluation.report import BETTER, EvaluationReport
from ..evaluation.verdicts import verdict_sentences
from .columns import Record, figure, figure_table
from .live_tables import render_live


def render_report(
    report: EvaluationReport | Record, *, per_budget: bool = True, per_dataset: bool = True
) -> RenderableType:
    """Returns the report for rich: its data, figures, verdicts, choices, the live run, warnings."""
    record = report.to_dict() if isinstance(report, EvaluationReport) else report
    parts: list[RenderableType] = [_heading(record), *_overall(record)]
    if per_budget and len(record["budgets_ms"]) > 1:
        parts.append(_per_budget(record))
    if per_dataset and len(_datasets(record)) > 1:
        parts += _per_dataset(record)
    if verdicts := _verdicts(record):
        parts.append(Lines(*verdicts))
    parts += _choices(record)
    if record["live"]:
        parts.append(render_live(record["live"]))
    parts += render_notes(record)
    return Lines(*[line for part in parts for line in (part, Text(""))][:-1])


def render_notes(record: Record) -> list[Text]:
    """Returns where the choices were written, and the warnings."""
    lines = [Text(f"choices written to {record['choices']}")] if record["choices"] else []
    return lines + [Text(f"note: {warning}", style="yellow") for warning in record["warnings"]]


def _heading(record: Record) -> Text:
    cache = record["cache"]
    confidence = f"{100 * record['bootstrap']['confidence']:g} %"
    device = cache.get("device") or {}
    made_on = f", latencies of {device['name']}" if device.get("name") else ""
    tested = f"{record['split']} split"
    if record["folds"]:
        tested = f"cross-validated in {record['folds']} folds, each tested with policies fitted on the others"
    lines = [
        f"{tested}: {record['n_samples']} samples of {record['n_clusters']} "
        f"{'images' if record['cluster_by'] == 'image_id' else 'samples (no image ids)'}, "
        f"{len(record['budgets_ms'])} budgets from {min(record['budgets_ms']):g} to {max(record['budgets_ms']):g} ms"
        f"{made_on}",
        f"in brackets: {confidence} intervals, bootstrap clustered by "
        f"{'image' if record['cluster_by'] == 'image_id' else 'sample'}, {record['bootstrap']['resamples']} resamples",
    ]
    return Text("\n".join(lines))


def _overall(record: Record) -> list[Table]:
    """Returns accuracy and reward of each policy over all budgets, and its latency."""
    rewards = figure_table("All budgets", ("policy",), ("accuracy", "reward", "gap\nclosed"))
    latencies = figure_table(
        "Latency, all budgets", ("policy",), ("mean ms", "p50 ms", "p95 ms", "over budget", "of feasible")
    )
    for name, policy in record["policies"].items():
        metrics = policy["overall"]["all_budgets"]
        rewards.add_row(
            _name(name, record),
            figure(metrics["accuracy"], interval=True),
            figure(metrics["reward"], interval=True),
            figure(metrics.get("gap_closed"), 2),
        )
        latencies.add_row(
            _name(name, record),
            figure(metrics["latency_ms"], 1),
            figure(metrics["latency_p50_ms"], 1),
            figure(metrics["latency_p95_ms"], 1),
            figure(metrics["violation_rate"], percent=True),
            figure(metrics["violation_rate_of_feasible"], percent=True),
        )
    return [rewards, latencies]


def _per_budget(record: Record) -> Table:
    columns = ("accuracy", "reward", "mean ms", "over budget")
    table = figure_table("Budget by budget", ("budget ms", "policy"), columns)
    table.columns[0].justify = "right"
    for place, budget_ms in enumerate(record["budgets_ms"]):
        for row, (name, policy) in enumerate(record["policies"].items()):
            metrics = policy["overall"]["per_budget"][place]
            unmet = " unmet" if budget_ms in record["unmet_budgets_ms"] else ""
            table.add_row(
                f"{budget_ms:g}{unmet}" if row == 0 else "",
                _name(name, record),
                figure(metrics["accuracy"]),
                figure(metrics["reward"], interval=name in record["subjects"]),
                figure(metrics["latency_ms"], 1),
                figure(metrics["violation_rate"], percent=True),
            )
    return table


def _per_dataset(record: Record) -> list[Table]:
    """Returns a table for each dataset."""
    columns = ("accuracy", "reward", "mean ms", "over budget", "gap\nclosed")
    tables = []
    for dataset in _datasets(record):
        count = next(iter(record["policies"].values()))["datasets"][dataset]["n_samples"]
        table = figure_table(f"{dataset} ({count}), all budgets", ("policy",), columns)
        for name, policy in record["policies"].items():
            metrics = policy["datasets"][dataset]["all_budgets"]
            table.add_row(
                _name(name, record),
                figure(metrics["accuracy"]),
                figure(metrics["reward"], interval=True),
                figure(metrics["latency_ms"], 1),
                figure(metrics["violation_rate"], percent=True),
                figure(metrics.get("gap_closed"), 2),
            )
        tables.append(table)
    return tables


def _verdicts(record: Record) -> list[Text]:
    """Returns one sentence for each comparison of a subject over all samples."""
    styles = {BETTER: "green", None: ""}
    return [Text(line, style=styles.get(verdict, "yellow")) for verdict, line in verdict_sentences(record)]


def _choices(record: Record) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for name in record["subjects"]:
        policy = record["policies"][name]
        knobs = "; ".join(
            f"{knob.replace('_', ' ')} " + ", ".join(f"{value} {share:.0%}" for value, share in shares.items() if share)
            for knob, shares in policy["knobs"].items()
        )
        most = ", ".join(f"{setting} {share:.0%}" for setting, share in list(policy["settings"].items())[:5])
        lines.append(Text(f"{name} chose {len(policy['settings'])} settings: {knobs}\n  most often {most}"))
    return lines


def _name(name: str, record: Record) -> Text:
    return Text(name, style="bold" if name in record["subjects"] else "")


def _datasets(record: Record) -> Sequence[str]:
    return list(next(iter(record["policies"].values()))["datasets"])
