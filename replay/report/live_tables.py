"""Renders the live part of a report for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from .columns import figure, figure_table

SHOWN_DISAGREEMENTS = 10


def render_live(live: Mapping[str, Any]) -> RenderableType:
    """Returns the live figures, the controllers' own time, and the agreement with replay."""
    title = f"Live: {live['n_samples']} samples x {len(live['budgets_ms'])} budgets"
    columns = ("requests", "accuracy", "mean reward", "median\nreward")
    rewards = figure_table(title, ("policy",), columns)
    latencies = figure_table("Live latency", ("policy",), ("mean ms", "p50 ms", "p95 ms", "over budget"))
    for name, figures in live["policies"].items():
        metrics = figures["all_budgets"]
        if "reward" not in metrics:
            rewards.add_row(name, str(metrics["requests"]), *["-"] * 3)
            continue
        rewards.add_row(
            name,
            str(metrics["requests"]),
            figure(metrics["accuracy"], interval=True),
            figure(metrics["reward"], interval=True),
            figure(metrics["reward_p50"]),
        )
        latencies.add_row(
            name,
            figure(metrics["latency_ms"], 1),
            f"{metrics['latency_p50_ms']:.1f}",
            f"{metrics['latency_p95_ms']:.1f}",
            f"{metrics['violation_rate']['value']:.1%}",
        )
    lines: list[RenderableType] = [rewards, Text(""), latencies, Text("")]
    lines += [
        Text(f"{name}: own time {_own_time(overhead, 'p50')} in the median, {_own_time(overhead, 'p95')} at p95")
        for name, overhead in live["overhead"].items()
        if overhead is not None
    ]
    return Lines(*lines, *_agreement(live["agreement"]))


def _agreement(found: Mapping[str, Any]) -> list[Text]:
    parts = [
        f"{what} {found[same]}/{found[compared]}"
        for what, same, compared in (
            ("bit-equal language feature", "same_feature", "features_compared"),
            ("bit-equal latency token", "same_token", "tokens_compared"),
            ("same setting", "same_setting", "settings_compared"),
            ("same answer", "same_answer", "answers_compared"),
            ("same accuracy", "same_accuracy", "accuracies_compared"),
            ("same when timed", "same_timed", "timed_compared"),
        )
    ]
    # The engine's single probe may give a token with another last bit, so timed requests may differ.
    all_agree = all(item["kind"] == "timed" for item in found["disagreements"])
    lines = [Text("live against replay: " + ", ".join(parts), style="green" if all_agree else "red")]
    if found["outside_replay"] or found["not_cached"]:
        lines.append(
            Text(
                f"not compared: {found['outside_replay']} requests outside the cache's grid or samples, "
                f"{found['not_cached']} whose outcome is not in the cache"
            )
        )
    for name, what in (("with_controllers", "with the controllers inside"), ("given_settings", "without controllers")):
        error = found["latency_error"][name]
        if error is not None:
            lines.append(
                Text(
                    f"live latency {what} against the cache's, {error['timings']} requests: "
                    f"{error['mean_signed']:+.1%} on average, {error['median_absolute']:.1%} off in the median, "
                    f"{error['p95_absolute']:.1%} at p95"
                )
            )
    lines += [Text(f"disagreement, {count} times: {cause}", style="red") for cause, count in found["causes"].items()]
    shown = found["disagreements"][:SHOWN_DISAGREEMENTS]
    lines += [
        Text(
            f"  {item['sample_id']} at {item['budget_ms']:g} ms ({item['policy']}, {item['setting']}), {item['kind']}: "
            f"{_sides(item)}: {item['cause']}" + (f" by {item['by']:.3g}" if item.get("by") is not None else "")
        )
        for item in shown
    ]
    more = len(found["disagreements"]) - len(shown)
    return [*lines, Text(f"  and {more} more in the JSON report")] if more > 0 else lines


def _sides(item: Mapping[str, Any]) -> str:
    if item["kind"] == "timed":
        return f"in two calls {item['two_calls']!r}, end to end {item['live']!r}"
    return f"replay {item['replay']!r}, live {item['live']!r}"


def _own_time(overhead: Mapping[str, Any], quantile: str) -> str:
    return f"{overhead[f'{quantile}_ms']:.2f} ms ({overhead[f'{quantile}_share']:.1%} of a request)"
