"""Figures of estimates with intervals, one row each: paired differences, gap closed by dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...evaluation.bootstrap import Estimate
from ...evaluation.report import BETTER, WORSE
from ..figures.cells import percentages
from ..figures.policies import Difference, Differences, GapClosed
from ..figures.source import label
from .style import COLOURS, INK, MUTED, figure, legend_label, plain, shortened, stroke

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {  # verdict -> colour, marker, whether the marker is filled
    BETTER: (COLOURS["blue"].light, "o", True),
    WORSE: (COLOURS["bad"].light, "s", True),
}
FAR_BELOW = 100  # percent
ZOOM_BELOW = 60  # percent; if all intervals end below, the oracle at 100 is outside the range shown
UNDECIDED = (MUTED, "o", False)


def draw_differences(record: Differences) -> Figure:
    from matplotlib.ticker import MaxNLocator

    rows = record.rows
    several = len({one.policy for one in rows}) > 1
    made = figure(1.05 + 0.36 * len(rows))
    axes = made.subplots()
    axes.axvline(0, color=INK, linewidth=1)
    for place, one in enumerate(rows):
        colour, marker, filled = LOOKS.get(one.verdict, UNDECIDED)
        _row(axes, place, one.reward, colour, marker, filled)
    axes.set_yticks(range(len(rows)), [_row_name(one, several) for one in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("difference in mean reward, all budgets (controllers minus baseline)")
    axes.xaxis.set_major_locator(MaxNLocator(5))  # more labels would overlap
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(rows)), [one.verdict.replace("no difference shown", "not shown") for one in rows])
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)
    for text, one in zip(right.get_yticklabels(), rows, strict=True):
        text.set_color(LOOKS.get(one.verdict, UNDECIDED)[0])
        text.set_fontweight("bold")
    axes.spines["left"].set_visible(False)
    return made


def _row_name(one: Difference, several: bool) -> str:
    versus = plain(shortened(label(one.versus), 28))
    return f"{plain(shortened(one.policy, 18))} vs {versus}" if several else f"vs {versus}"


def draw_gap_closed(record: GapClosed) -> Figure:
    count = len(record.policies)
    step = 0.7 / max(count, 1)
    made = figure(1.5 + len(record.rows) * (0.3 + 0.17 * count))
    axes = made.subplots()
    axes.axvline(0, color=COLOURS["amber"].light, linewidth=1.2, linestyle="-.")
    known = [percentages(one) for row in record.rows for one in row.closed.values()]
    values = [one.value for one in known if one.value is not None]
    lows = [one.low for one in known if one.low is not None]
    highs = [one.high for one in known if one.high is not None]
    zoomed = max([*values, *highs]) < ZOOM_BELOW
    if not zoomed:
        axes.axvline(100, color=INK, linewidth=1.2, linestyle="--")
    for place, name in enumerate(record.policies):
        look = stroke(name, record.subjects)
        for row, group in enumerate(record.rows):
            at = row + (place - (count - 1) / 2) * step
            _row(axes, at, percentages(group.closed[name]), look.colour, look.marker, look.filled)
        axes.plot([], [], look.marker, color=look.colour, label=legend_label(name), markersize=5)
    names = [f"{plain(shortened(row.name, 24))}\n(n = {row.n_samples:,})" for row in record.rows]
    axes.set_yticks(range(len(record.rows)), names)
    axes.set_ylim(len(record.rows) - 0.5, -0.5)
    if min(lows, default=0.0) < min(values) - FAR_BELOW:  # a very wide interval would squeeze all others
        left, right = min(values) - FAR_BELOW, max(0.0, *values, *highs)
        axes.set_xlim(left, right + 0.04 * (right - left))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(
        f"share of the gap closed (%): 0 = budget-only table, 100 = oracle{' (not shown)' if zoomed else ''}"
    )
    made.legend(loc="outside lower left", ncols=2)
    return made


def _row(axes: Axes, at: float, estimate: Estimate, colour: str, marker: str, filled: bool) -> None:
    if estimate.value is None:
        return
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [at, at], color=colour, linewidth=2, solid_capstyle="butt", zorder=2)
    axes.plot(
        [estimate.value],
        [at],
        marker,
        color=colour,
        markerfacecolor=colour if filled else "none",
        markeredgewidth=1.4,
        markersize=6,
        zorder=3,
    )
