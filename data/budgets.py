"""The grid of budgets between what the cheapest setting takes and what the full one takes."""

from __future__ import annotations

import math

import numpy as np

DEFAULT_BUDGETS = 16


def budget_grid(low_ms: float, high_ms: float, count: int = DEFAULT_BUDGETS) -> tuple[float, ...]:
    """Returns up to `count` budgets in ms, geometric from `low_ms` to `high_ms`, rounded to whole ms, each once.

    Whole ms are easy to type and compare equal as float32. Rounding can make neighbours equal, so a narrow range gives
    fewer than `count`; the least budget is 1 ms. The ends may come in either order.
    """
    if not (math.isfinite(low_ms) and math.isfinite(high_ms) and low_ms > 0 and high_ms > 0 and count >= 1):
        raise ValueError(f"a grid needs positive, finite ends and one budget at least: {low_ms}, {high_ms}, {count}")
    low_ms, high_ms = sorted((low_ms, high_ms))
    budgets_ms = np.maximum(np.rint(np.geomspace(low_ms, high_ms, count)), 1.0)
    return tuple(float(budget) for budget in np.unique(budgets_ms))
