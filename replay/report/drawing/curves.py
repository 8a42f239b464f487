"""Figures with lines: accuracy against latency, reward and latency against budget, training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...evaluation.bootstrap import Estimate
from ..figures.budgets import Frontier, LatencyByBudget, Point, RewardByBudget
from ..figures.cells import percentages
from ..figures.training import TrainingCurves
from .style import CLOUD, COLOURS, INK, MUTED, SUBJECT_STROKES, Dashes, figure, legend_label, plain, shortened, stroke

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RASTER_FROM = 3000  # points; more would make the file large


def draw_frontier(record: Frontier) -> Figure:
    subjects = record.subjects
    made = figure(4.3)
    axes = made.subplots()
    if record.settings:
        axes.plot(
            [point.latency_ms for point in record.settings],
            [100 * point.accuracy for point in record.settings],
            ".",
            color=CLOUD,
            markersize=3.2,
            markeredgewidth=0,
            label="fixed settings",
            rasterized=len(record.settings) > RASTER_FROM,
            zorder=1,
        )
    for name, points in record.curves.items():
        if name != "random":
            _accuracy_curve(axes, name, points, subjects)
    for name, point in record.fixed.items():
        _accuracy_curve(axes, name, (point,), subjects)
    axes.set_xlabel("mean latency (ms)")
    axes.set_ylabel("accuracy (%)")
    _legend(made, axes)
    return made


def _accuracy_curve(axes: Axes, name: str, points: Sequence[Point], subjects: tuple[str, ...]) -> None:
    look = stroke(name, subjects)
    latency = [point.latency_ms for point in points]
    accuracy = [percentages(point.accuracy) for point in points]
    x, y = _values(latency), _values(accuracy)
    axes.errorbar(x, y, _spread(accuracy), _spread(latency), "none", ecolor=look.colour, elinewidth=0.9, alpha=0.6)
    _line(axes, x, y, name, subjects, line=look.line if len(points) > 1 else "none")


def draw_reward(record: RewardByBudget) -> Figure:
    subjects = record.subjects
    made = figure(4.0)
    axes = made.subplots()
    shown = {name: curve for name, curve in record.curves.items() if name != "random"}
    for name, curve in shown.items():
        _curve(axes, record.budgets_ms, curve, name, subjects)
    _focus(axes, [curve for name, curve in shown.items() if name not in ("full", "cheapest", "best_fixed")])
    axes.set_xlabel("budget (ms)")
    axes.set_ylabel("mean reward")
    _legend(made, axes)
    return made


def draw_latency(record: LatencyByBudget) -> Figure:
    made = figure(5.2)
    top, bottom = made.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    grid = record.budgets_ms
    top.plot(grid, grid, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), label="latency = budget")
    for name, policy in record.policies.items():
        if name in ("random", "full", "cheapest", "best_fixed"):
            continue
        look = stroke(name, record.subjects)
        _line(top, grid, _values(policy.mean_ms), name, record.subjects)
        if name in record.subjects[:1]:
            top.fill_between(
                grid,
                _values(policy.mean_ms),
                _values(policy.p95_ms),
                color=look.colour,
                alpha=0.15,
                linewidth=0,
                label=f"{legend_label(name)}: mean to 95th percentile",
            )
        _curve(bottom, grid, [percentages(one) for one in policy.over_budget], name, record.subjects)
    top.set_ylabel("achieved latency (ms)")
    bottom.set_ylabel("over budget (%)")
    bottom.set_xlabel("budget (ms)")
    bottom.set_ylim(bottom=min(-2.0, bottom.get_ylim()[0]))
    _legend(made, top)
    return made


def draw_training(record: TrainingCurves) -> Figure:
    made = figure(3.9)
    axes = made.subplots()
    if record.table_reward is not None:  # the oracle is far above and would flatten the curves
        axes.axhline(record.table_reward, color=COLOURS["amber"].light, linestyle="-.", label="budget-only table")
    for place, run in enumerate(record.runs):
        look = SUBJECT_STROKES[place % len(SUBJECT_STROKES)]
        _training_curve(axes, run, look.colour, look.line, look.marker)
    for run in record.references:
        _training_curve(axes, run, INK, (0, (1, 1)), "x")
    axes.set_xlabel("epoch (passes over the training samples)")
    axes.set_ylabel("mean reward on val")
    _legend(made, axes)
    return made


def _training_curve(axes: Axes, run: Any, colour: str, line: Any, marker: str) -> None:
    x, y = [one.epoch for one in run.evaluations], [one.reward for one in run.evaluations]
    kind = "exact gradient" if run.estimator == "exact" else "GRPO"
    name = f"{plain(shortened(run.name))} ({kind}, seed {run.seed})"
    axes.plot(x, y, color=colour, linestyle=line, linewidth=1.4, label=name)
    best = [(epoch, reward) for epoch, reward in run.evaluations if epoch == run.best_epoch]
    axes.plot(*zip(*best, strict=True), marker, color=colour, markersize=6) if best else None


def _curve(axes: Axes, x: Sequence[float], curve: Sequence[Estimate], name: str, subjects: tuple[str, ...]) -> None:
    """Draws a policy over the budgets, with intervals."""
    y = _values(curve)
    axes.errorbar(x, y, _spread(curve), None, "none", ecolor=stroke(name, subjects).colour, elinewidth=0.9, alpha=0.6)
    _line(axes, x, y, name, subjects)


def _line(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    name: str,
    subjects: tuple[str, ...],
    line: Dashes | None = None,
) -> None:
    look = stroke(name, subjects)
    axes.plot(
        x,
        y,
        color=look.colour,
        linestyle=look.line if line is None else line,
        linewidth=look.width,
        marker=look.marker,
        markersize=6.5 if look.marker == "*" else 4.5,
        markerfacecolor=look.colour if look.filled else "none",
        label=legend_label(name),
        zorder=4 if name in subjects else 3,
    )


def _values(estimates: Sequence[Estimate]) -> list[float]:
    return [math.nan if one.value is None else one.value for one in estimates]


def _spread(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Returns the lengths of the error bars below and above; 0 where there is no interval."""
    below, above = [], []
    for one in estimates:
        known = one.value is not None and one.low is not None and one.high is not None
        below.append(max(0.0, one.value - one.low) if known else 0.0)  # type: ignore[operator]
        above.append(max(0.0, one.high - one.value) if known else 0.0)  # type: ignore[operator]
    return [below, above]


def _focus(axes: Axes, curves: Sequence[Sequence[Estimate]]) -> None:
    """Limits the reward axis to these curves: policies that ignore the budget may be far below all others."""
    values = [value for curve in curves for one in curve for value in (one.value, one.low, one.high)]
    known = [value for value in values if value is not None]
    if known:
        margin = 0.06 * max(max(known) - min(known), 1e-6)
        axes.set_ylim(min(known) - margin, max(known) + margin)


def _legend(made: Figure, axes: Axes) -> None:
    """Puts the legend below the axes, where it cannot cover data."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels), default=0) > 16 else 3
    made.legend(handles, labels, loc="outside lower left", ncols=columns, markerscale=1.3)
