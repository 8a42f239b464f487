"""The table that all parts of a report use, and estimates as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

Record = Mapping[str, Any]


def figure_table(title: str, names: Sequence[str], figures: Sequence[str]) -> Table:
    """Returns an empty table with columns of names, set left, and columns of figures, set right.

    Figures are never wrapped or cut; names wrap where the terminal is too narrow.
    """
    heading = Text(title, style="bold")
    table = Table(title=heading, title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 1))
    for name in names:
        table.add_column(name, overflow="fold")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def figure(estimate: Record | None, digits: int = 3, *, percent: bool = False, interval: bool = False) -> str:
    """Returns an estimate as text, with its interval if asked for; "-" if it is undefined."""
    if estimate is None or estimate["value"] is None:
        return "-"

    def show(value: float) -> str:
        return f"{100 * value:.{max(digits - 2, 0)}f} %" if percent else f"{value:.{digits}f}"

    text = show(estimate["value"])
    if interval and estimate["low"] is not None:
        text += f" [{show(estimate['low'])}, {show(estimate['high'])}]"
    return text
