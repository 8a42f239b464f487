"""The short form of a report: a headline in plain words, and one table of policies with the differences from each."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ..evaluation.report import BETTER, NOT_SHOWN, OVERALL, WORSE
from ..policies.registry import BASELINES
from .columns import Record, figure, figure_table


def headline(record: Record) -> str:
    """Returns what the first subject of a report achieves and how it compares, in a few sentences."""
    name = record["subjects"][0]
    correct, ms, missed = _achieved(record, name)
    lines = [
        f"The {name} answer {correct} of the questions correctly, take {ms} ms on average and exceed the latency "
        f"budget in {missed} of the requests."
    ]
    if "full" in record["policies"]:
        correct, ms, missed = _achieved(record, "full")
        lines[0] += f" The full model answers {correct} correctly, takes {ms} ms and exceeds the budget in {missed}."
    for verdict, words in (
        (BETTER, f"By mean reward, the {name} are shown to be better than"),
        (WORSE, f"By mean reward, the {name} are shown to be worse than"),
        (NOT_SHOWN, "No difference in mean reward is shown from"),
    ):
        others = [_difference(found) for found in _comparisons(record, name) if found["verdict"] == verdict]
        if others:
            lines.append(f"{words} {_listed(others)}.")
    return "\n".join([*lines, _how(record, name)])


def summary_table(record: Record) -> Table:
    """Returns a line for each policy, with the first subject's mean reward minus its own and the verdict."""
    name = record["subjects"][0]
    columns = ("accuracy", "mean ms", "over\nbudget", "reward", f"{name}\nminus it", "verdict")
    table = figure_table("All budgets", ("policy",), columns)
    compared = {comparison["versus"]: comparison for comparison in _comparisons(record, name)}
    for policy, report in record["policies"].items():
        if policy != name and policy not in BASELINES:
            continue  # single seeds and ablations
        metrics = report["overall"]["all_budgets"]
        comparison = compared.get(policy)
        table.add_row(
            Text(_label(policy), style="bold" if policy == name else ""),
            figure(metrics["accuracy"]),
            figure(metrics["latency_ms"], 1),
            figure(metrics["violation_rate"], percent=True),
            figure(metrics["reward"]),
            _interval(comparison["differences"]["reward"]) if comparison else "",
            comparison["verdict"] if comparison else "",
        )
    return table


def _comparisons(record: Record, name: str) -> list[Record]:
    """Returns the comparisons of a policy with baselines over all samples."""
    return [
        comparison
        for comparison in record["comparisons"]
        if comparison["policy"] == name and comparison["group"] == OVERALL and comparison["versus"] in BASELINES
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
    return f"the {_label(comparison['versus'])} ({_interval(comparison['differences']['reward'])})"


def _interval(reward: Record) -> str:
    if reward["low"] is None:
        return f"{reward['value']:+.3f}"
    return f"{reward['value']:+.3f} [{reward['low']:+.3f}, {reward['high']:+.3f}]"


def _how(record: Record, name: str) -> str:
    seeds = len(record["controllers"]) if record["folds"] else 1
    tested = f"the {record['split']} split"
    if record["folds"]:
        tested = f"cross-validation ({record['folds']} folds) over all samples"
        tested += f", mean of {seeds} controller seeds" if seeds > 1 else ""
    compared = len(_comparisons(record, name))
    corrected = f"; verdicts corrected for {compared} comparisons (Holm)" if compared > 1 else ""
    return (
        f"Judged by {tested}: {record['n_samples']} samples x {len(record['budgets_ms'])} budgets, "
        f"{100 * record['bootstrap']['confidence']:g} % intervals in brackets{corrected}."
    )


def _label(name: str) -> str:
    return BASELINES[name].label if name in BASELINES else name
