"""Figures of knob values: shares by budget as stacked bars, accuracy and latency as heat maps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..figures.policies import KnobShares
from ..figures.settings import HeatMaps, Map
from .style import PAPER, POINT_SIZE, figure, plain, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEQUENCE = "cividis"  # perceptually uniform, also for readers with a colour vision deficiency, and in grey
LABELLED_SHARE = 0.12  # smaller segments have no room for a label
ON_DARK, ON_LIGHT = "#fefefe", "#010101"  # on cells, whose colours are the same on a light and a dark page
NARROW_LABEL = 4  # characters; longer labels are written upwards
LABELLED_CELLS = 7  # per row; more have no room
KNOB_NAMES = {
    "tier": "image tier",
    "insertion_position": "insertion position (block)",
    "top_k": "experts per token",
    "num_blocks": "blocks run",
}


def draw_knob_shares(record: KnobShares) -> Figure:
    columns = min(2, len(record.knobs))
    rows = math.ceil(len(record.knobs) / columns)
    made = figure(2.1 * rows + 0.3)
    grid = made.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for place, (knob, values) in enumerate(record.knobs.items()):
        _stack(grid[place // columns][place % columns], KNOB_NAMES.get(knob, knob), values, record.budgets_ms)
    for place in range(len(record.knobs), rows * columns):
        grid[place // columns][place % columns].set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("requests (%)")
    for axes in grid[-1]:
        axes.set_xlabel("budget (ms)")
    return made


def _stack(axes: Axes, title: str, values: dict[str, tuple[float, ...]], budgets_ms: tuple[float, ...]) -> None:
    import matplotlib as mpl
    import numpy as np

    colours = mpl.colormaps[SEQUENCE](np.linspace(0.06, 0.94, len(values)))
    at, base = np.arange(len(budgets_ms)), np.zeros(len(budgets_ms))
    for (value, shares), colour in zip(values.items(), colours, strict=True):
        height = 100 * np.array(shares)
        axes.bar(at, height, 0.86, base, color=colour, edgecolor=PAPER, linewidth=0.6)
        for x, (share, low) in enumerate(zip(height, base, strict=True)):
            upright = len(value) <= NARROW_LABEL
            if (
                share >= 100 * (LABELLED_SHARE if upright else 2 * LABELLED_SHARE)
                and len(budgets_ms) <= 2 * LABELLED_CELLS
            ):
                axes.text(
                    x,
                    low + share / 2,
                    plain(shortened(value, 8)),
                    ha="center",
                    va="center",
                    rotation=0 if upright else 90,
                    color=_readable(colour),
                    fontsize=POINT_SIZE - (3 if len(budgets_ms) > 6 or len(value) > 5 else 1.5),
                )
        base = base + height
    axes.set_title(title)
    axes.set_xticks(at, [f"{budget:g}" for budget in budgets_ms], rotation=0 if len(budgets_ms) <= 7 else 90)
    axes.set_ylim(0, 100)
    axes.grid(visible=False)
    if len(budgets_ms) > 2 * LABELLED_CELLS:
        handles = [mpl.patches.Patch(color=colour) for colour in colours]
        axes.legend(handles, [plain(shortened(value, 8)) for value in values], loc="upper left", bbox_to_anchor=(1, 1))


def draw_heat_maps(record: HeatMaps) -> Figure:
    import matplotlib as mpl

    columns = len(record.tiers)
    cell = 0.27 if len(record.top_k) <= 8 else 0.14
    made = figure(2 * (cell * len(record.top_k) + 0.5) + 0.6)
    grid = made.subplots(2, columns, squeeze=False, sharex=True, sharey=True)
    for row, (title, maps, digits) in enumerate(
        (("accuracy (%)", _percent(record.accuracy), 0), ("latency (ms)", record.latency_ms, 1))
    ):
        colours = mpl.colormaps[SEQUENCE if row == 0 else f"{SEQUENCE}_r"]  # bright is good in both
        known = [value for one in maps for line in one for value in line if value is not None]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        image: Any = None
        for column, one in enumerate(maps):
            axes = grid[row][column]
            image = _map(axes, one, low, high, digits if high < 100 or digits == 0 else 0, colours)
            tier = plain(shortened(record.tiers[column], 12))
            axes.set_title(f"tier {tier}" if row == 0 else "", fontsize=POINT_SIZE)
            axes.set_xticks(range(len(record.num_blocks)), [str(value) for value in record.num_blocks])
            axes.set_yticks(range(len(record.top_k)), [str(value) for value in record.top_k])
        bar = made.colorbar(image, ax=list(grid[row]), label=title, aspect=14, pad=0.015)
        bar.outline.set_visible(False)
        grid[row][0].set_ylabel("experts per token")
    grid[1][columns // 2].set_xlabel("blocks run")
    return made


def _map(axes: Axes, values: Map, low: float, high: float, digits: int, colours: Any) -> Any:
    import numpy as np

    value_KN = np.array([[float("nan") if value is None else value for value in line] for line in values])
    rows, columns = value_KN.shape
    span = high - low or 1.0
    image = axes.pcolormesh(
        np.arange(columns + 1) - 0.5,
        np.arange(rows + 1) - 0.5,
        np.ma.masked_invalid(value_KN),
        cmap=colours,
        vmin=low,
        vmax=low + span,
        edgecolor=PAPER,
        linewidth=0.5,
    )
    if columns <= LABELLED_CELLS:
        for k in range(rows):
            for n in range(columns):
                value = values[k][n]
                if value is None:
                    continue
                colour = _readable(colours((value - low) / span))
                axes.text(
                    n, k, f"{value:.{digits}f}", ha="center", va="center", color=colour, fontsize=POINT_SIZE - 2.5
                )
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def _readable(colour: Any) -> str:
    """Returns white or black, whichever has the higher contrast with the colour behind it."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in map(float, colour[:3]))
    return ON_DARK if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.18 else ON_LIGHT


def _percent(maps: tuple[Map, ...]) -> tuple[Map, ...]:
    return tuple(tuple(tuple(None if v is None else 100 * v for v in line) for line in one) for one in maps)
