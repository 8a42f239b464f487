"""Figures of measurements: importance of blocks, blockwise against end-to-end latency, live against replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..figures.measurements import BlockwiseError, Importance, LiveLatency
from .style import COLOURS, INK, MUTED, figure, plain, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_importance(record: Importance) -> Figure:
    blocks = [block for block, score in enumerate(record.scores) if score is not None]
    scores = [100 * score for score in record.scores if score is not None]
    std = None if record.std is None else [100 * (record.std[block] or 0.0) for block in blocks]
    made = figure(3.2)
    axes = made.subplots()
    axes.bar(
        blocks,
        scores,
        0.72,
        color=COLOURS["blue"].light,
        yerr=std,
        error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
    )
    axes.axhline(0, color=INK, linewidth=0.8)
    step = max(1, len(record.scores) // 20)
    axes.set_xticks(range(0, len(record.scores), step))
    axes.set_xlim(-0.7, len(record.scores) - 0.3)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("block left out (0 = first)")
    axes.set_ylabel("accuracy lost (percentage points)")
    return made


def draw_blockwise(record: BlockwiseError) -> Figure:
    looks = (
        ("error of the mean", "blue", "", "error_of_mean"),
        ("median absolute error", "amber", "//", "median_absolute"),
        ("95th percentile of the absolute error", "muted", "..", "p95_absolute"),
    )
    made = figure(3.3)
    axes = made.subplots()
    for place, (name, colour, hatch, column) in enumerate(looks):
        axes.bar(
            [row + (place - 1) * 0.27 for row in range(len(record.stages))],
            [100 * getattr(stage, column) for stage in record.stages],
            0.25,
            label=name,
            color=COLOURS[colour].light,
            hatch=hatch,
            edgecolor=COLOURS["paper"].light,
            linewidth=0.5,
        )
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(range(len(record.stages)), [plain(shortened(stage.stage, 14)) for stage in record.stages])
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("stage of a request")
    axes.set_ylabel("blockwise against end to end (%)")
    made.legend(loc="outside lower left", ncols=2)
    return made


def draw_live(record: LiveLatency) -> Figure:
    replay = [pair.replay_ms for pair in record.pairs]
    live = [pair.live_ms for pair in record.pairs]
    low, high = min(*replay, *live), max(*replay, *live)
    margin = 0.04 * (high - low or 1.0)
    ends = (low - margin, high + margin)
    made = figure(4.2)
    axes = made.subplots()
    axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), label="equal")
    axes.plot(
        replay,
        live,
        "o",
        color=COLOURS["blue"].light,
        markersize=4,
        markeredgewidth=0,
        alpha=0.65,
        label="one question under one setting",
        rasterized=len(replay) > 3000,
    )
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    axes.set_aspect("equal")
    axes.set_xlabel("latency in the cache (ms)")
    axes.set_ylabel("latency of the running model (ms)")
    made.legend(loc="outside lower left", ncols=2)
    return made
