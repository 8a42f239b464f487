"""Tables of numbers with their text, for the page: every figure has one, which also serves readers of the screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ...evaluation.bootstrap import Estimate


class Cell(NamedTuple):
    """What a table shows, and the number it is sorted by (None: by the text)."""

    text: str
    value: float | None = None
    interval: str = ""


class DataTable(NamedTuple):
    """Columns with units, and rows of as many cells. The first column names the row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column holds numbers."""
        return tuple(any(row[place].value is not None for row in self.rows) for place in range(len(self.columns)))


MISSING = Cell("-")


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell | str]]) -> DataTable:
    """Returns a table; plain texts become cells."""
    made = tuple(tuple(Cell(one) if isinstance(one, str) else one for one in row) for row in rows)
    assert all(len(row) == len(columns) for row in made), "a row has another length than the header"
    return DataTable(tuple(columns), made)


def number(value: float | None, digits: int = 3, *, percent: bool = False, sign: bool = False) -> Cell:
    """Returns a number; a share as percentage if asked for. None is a dash."""
    if value is None:
        return MISSING
    return Cell(_text(value, digits, percent, sign), value)


def estimate(one: Estimate, digits: int = 3, *, percent: bool = False, sign: bool = False) -> Cell:
    """Returns an estimate with its interval."""
    if one.value is None:
        return MISSING
    interval = ""
    if one.low is not None and one.high is not None:
        interval = f"[{_text(one.low, digits, percent, sign)}, {_text(one.high, digits, percent, sign)}]"
    return Cell(_text(one.value, digits, percent, sign), one.value, interval)


def _text(value: float, digits: int, percent: bool, sign: bool) -> str:
    shown = round(100 * value if percent else value, digits) + 0.0  # + 0.0: no minus before zero
    return f"{shown:{'+' if sign else ''},.{digits}f}"


def percentages(one: Estimate) -> Estimate:
    """Returns a share as percentage."""
    return Estimate(*(None if value is None else 100 * value for value in (one.value, one.low, one.high)))
