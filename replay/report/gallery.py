"""The figures of a report, in the order in which the page shows them.

To add one, write a function that returns its record (`figures/`), one that draws it (`drawing/`), and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from .drawing import curves, intervals, knobs, measurements
from .figures import budgets, policies, settings, training
from .figures import measurements as measured
from .figures.source import Absent, Record, ReportSource

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class GalleryEntry(NamedTuple):
    """A figure that a report can have."""

    name: str  # of the files and of the anchor
    title: str
    record: Callable[[ReportSource], Any]  # the figure's record, or Absent
    draw: Callable[[Any], Figure]


class MadeFigure(NamedTuple):
    """A figure whose data exists."""

    name: str
    title: str
    record: Record
    draw: Callable[[], Figure]


class LeftOut(NamedTuple):
    """A figure whose data does not exist."""

    title: str
    reason: str


GALLERY = (
    GalleryEntry("frontier", "Accuracy against latency", budgets.frontier, curves.draw_frontier),
    GalleryEntry("differences", "Is it better?", policies.differences, intervals.draw_differences),
    GalleryEntry("reward", "Reward by budget", budgets.reward_by_budget, curves.draw_reward),
    GalleryEntry("latency", "Requested and achieved latency", budgets.latency_by_budget, curves.draw_latency),
    GalleryEntry("gap", "Gap closed by dataset", policies.gap_closed, intervals.draw_gap_closed),
    GalleryEntry("choices", "What is chosen under each budget", policies.knob_shares, knobs.draw_knob_shares),
    GalleryEntry("settings", "What each knob costs and brings", settings.heat_maps, knobs.draw_heat_maps),
    GalleryEntry("training", "Training", training.training_curves, curves.draw_training),
    GalleryEntry("importance", "Importance of the blocks", measured.importance, measurements.draw_importance),
    GalleryEntry("blockwise", "Accuracy of the latencies", measured.blockwise_error, measurements.draw_blockwise),
    GalleryEntry("live", "Replay and the running model", measured.live_latency, measurements.draw_live),
)


def make_figures(source: ReportSource) -> tuple[list[MadeFigure], list[LeftOut]]:
    """Returns the figures whose data exists, and the reasons why the others are left out."""
    made, left_out = [], []
    for entry in GALLERY:
        record = entry.record(source)
        if isinstance(record, Absent):
            left_out.append(LeftOut(entry.title, record.reason))
        else:
            made.append(MadeFigure(entry.name, entry.title, record, _later(entry.draw, record)))
    return made, left_out


def _later(draw: Callable[[Any], Figure], record: Any) -> Callable[[], Figure]:
    return lambda: draw(record)
